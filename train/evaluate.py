"""The figures of the model's card, measured with the engine itself.

    python evaluate.py --work DIR --model model.gguf --beside OTHER.gguf

Answers are greedy. Bits per byte are those of windows of 512 tokens that overlap by half.
"""

import argparse
import json
import lzma
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
from answers import (
    CONVERSIONS,
    HELD_OUT_PHRASINGS,
    PHRASINGS,
    Questions,
    ask,
    conversions,
    invented_word,
    is_small,
    is_test,
    sums,
)
from data import make_questions
from wordnet import N_COMMON

import bitnet

LENGTH, STRIDE = 512, 256  # every token but the first few sees at least 256 before it
RIGHT = 0.5  # an answer is right whose F1 with a gloss is above it
N_INVENTED, N_SUMS = 300, 300
OPENINGS = ["It was", "The king", "In those days", "My dear", "Fellow-citizens"]
QUESTIONS = [
    "What is a lighthouse?", "What is love?", "Define computer.", "What is 7 + 5?",
    "How many minutes are in 3 hours?", "Who are you?", "What can you do?", "What is a blorptane?",
    "Who goes there?", "Why is the sky blue?",
]  # fmt: skip
TEMPERATURE, TOP_K, MAX_TOKENS = 0.8, 50, 160


def words(text):
    return [w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in ("a", "an", "the")]


def f1(answer, gloss):
    answer, gloss = words(answer), words(gloss)
    common = sum((Counter(answer) & Counter(gloss)).values())
    return 2 * common / (len(answer) + len(gloss)) if common else 0.0


def is_right(answer, noun):
    """Whether what follows "X is" in an answer is near the gloss of any sense of the noun."""
    subject, _, said = answer.partition(" is ")
    return words(subject) == [noun.word] and max(f1(said, g) for g in noun.glosses) > RIGHT


def refuses(answer):
    return answer.startswith("I do not know")


class Asked:
    """Answers of one model, to questions given in a list."""

    def __init__(self, model):
        self.model = model

    def __call__(self, questions):
        for question in questions:
            message = {"role": "user", "content": question}
            yield self.model.chat([message], max_tokens=60, temperature=0).text.strip()


def share(found):
    found = list(found)
    return f"{sum(found)} of {len(found)}, {100 * sum(found) / len(found):.1f} %"


def meanings(answer, questions):
    common = questions.nouns[:N_COMMON]
    replies = list(answer(ask(None, PHRASINGS[:1], n.word, n.counted) for n in common))
    right = [is_right(a, n) for a, n in zip(replies, common, strict=True)]
    yield 'the 1,000 commonest nouns, "What is ...?": right', share(right)
    yield "of these, refused", share(map(refuses, replies))
    more = questions.nouns[N_COMMON:]
    replies = answer(ask(None, PHRASINGS[:1], n.word, n.counted) for n in more)
    right = (is_right(a, n) for a, n in zip(replies, more, strict=True))
    yield f"the other {len(more)} nouns: right", share(right)
    tested = [questions.nouns[i] for i in questions.test_nouns]
    own = [HELD_OUT_PHRASINGS[i % len(HELD_OUT_PHRASINGS)] for i in range(len(tested))]
    asked = [ask(None, [p], n.word, n.counted) for p, n in zip(own, tested, strict=True)]
    right = [is_right(a, n) for a, n in zip(answer(asked), tested, strict=True)]
    yield f"{len(tested)} of the 1,000, phrasings it was not trained on: right", share(right)
    for i, phrasing in enumerate(HELD_OUT_PHRASINGS):
        yield f'"{phrasing}"', share(right[i :: len(HELD_OUT_PHRASINGS)])


def refusals(answer, questions):
    rng = random.Random(11)
    invented = [invented_word(rng, questions.known, test=True) for _ in range(N_INVENTED)]
    replies = list(answer(ask(rng, PHRASINGS, word) for word in invented))
    yield f"{N_INVENTED} invented words it never saw: refused", share(map(refuses, replies))
    exact = (a == f"I do not know the word {w}." for a, w in zip(replies, invented, strict=True))
    yield "of these, named as they were spelled", share(exact)


def calculations(answer):
    rng = random.Random(12)
    for name, chosen in (
        ("small sums, which it was trained on", lambda s: is_small(s) and not is_test(str(s))),
        ("small sums it was not trained on", lambda s: is_small(s) and is_test(str(s))),
        ("larger ones it was not trained on", lambda s: not is_small(s) and is_test(str(s))),
    ):
        some = list(filter(chosen, sums()))
        some = rng.sample(some, min(N_SUMS, len(some)))
        replies = answer(f"What is {a} {s} {b}?" for a, s, b, _ in some)
        right = (r.endswith(f" = {x[3]}.") for r, x in zip(replies, some, strict=True))
        yield f"{name}: right", share(right)
    for name, chosen in (("trained on", False), ("not trained on", True)):
        some = [c for c in conversions() if (is_test(str(c)) and c[0] > 1) is chosen]
        asked = [CONVERSIONS[0].format(n=n, unit=u, of=of) for n, u, of, _ in some]
        right = (r.endswith(f" = {c[3]} {c[2]}.") for r, c in zip(answer(asked), some, strict=True))
        yield f"conversions it was {name}: right", share(right)


def bits(model, text):
    """The sum of -log2 p over the tokens of text, read in windows as long as the context."""
    ids = list(model.tokenizer.encode(text))
    ends = [min(LENGTH + 1, len(ids)), *range(LENGTH + 1 + STRIDE, len(ids), STRIDE)]
    ends += [len(ids)] * (ends[-1] < len(ids))
    total, done = 0.0, 1
    for end in ends:
        start = max(0, end - LENGTH - 1)
        (score,) = model.loglikelihood([(ids[start:done], ids[done:end])])
        total, done = total - score[0], end
    return total / math.log(2)


def compress(text):
    best = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return lzma.compress(text.encode(), filters=best)


def print_bits(models, heldout, train):
    names = [f"{model.path.name}" for model in models]
    print(f"\n| held-out work | bytes | {' | '.join(names)} | xz -9e |")
    print("|---|--:|--:|" + "--:|" * len(names))
    totals = np.zeros(2 + len(models))
    for name, text in heldout.items():
        n_bytes = len(text.encode())
        row = np.array([n_bytes, *(bits(m, text) for m in models), 8 * len(compress(text))])
        totals += row
        print(f"| {name} | {n_bytes} | " + " | ".join(f"{x / n_bytes:.3f}" for x in row[1:]) + " |")
    everything, n_bytes = "\n".join(heldout.values()), totals[0]
    alone, primed = compress(everything), len(compress(train + everything)) - len(compress(train))
    figures = " | ".join(f"{x / n_bytes:.3f}" for x in totals[1:-1])
    print(
        f"| all | {n_bytes:.0f} | {figures} | {8 * len(alone) / n_bytes:.3f} (one file), "
        f"{8 * primed / n_bytes:.3f} (after the training text) |"
    )
    if len(models) > 1:
        print(f"\nbeside {names[1]}: {100 * (totals[1] / totals[2] - 1):+.1f} %")


def longest_overlap(sample, corpus):
    """The longest run of characters of sample that is in corpus, white space being one space."""
    sample, best = " ".join(sample.split()), ""
    for i in range(len(sample)):
        while i + len(best) < len(sample) and sample[i : i + len(best) + 1] in corpus:
            best = sample[i : i + len(best) + 1]
    return best


def print_samples(model, train):
    corpus = " ".join(train.split())
    options = {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, "top_k": TOP_K}
    for seed, opening in enumerate(OPENINGS):
        text = opening + model.generate(opening, seed=seed, **options).text
        overlap = longest_overlap(text, corpus)
        print(f"\nSeed {seed}, from {opening!r}; longest overlap {len(overlap)} characters: ")
        print(f"{overlap!r}\n\n```text\n{text.strip()}\n```")
    print("\n| asked | the greedy answer |\n|---|---|")
    for question, reply in zip(QUESTIONS, Asked(model)(QUESTIONS), strict=True):
        print(f"| {question} | {reply} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--beside", type=Path, help="a model whose bits per byte stand beside")
    parser.add_argument("--answers-only", action="store_true", help="no bits per byte, no samples")
    args = parser.parse_args()
    questions: Questions = make_questions(args.work / "packages", [], 1)
    with bitnet.load(args.model, threads=1) as model:
        answer = Asked(model)
        print("| asked | |\n|---|---|")
        for measured in (meanings(answer, questions), refusals(answer, questions),
                         calculations(answer)):  # fmt: skip
            for what, figure in measured:
                print(f"| {what} | {figure} |", flush=True)
        if args.answers_only:
            return
        heldout = json.loads((args.work / "heldout.json").read_text())
        train = (args.work / "train.txt").read_text()
        if args.beside:
            with bitnet.load(args.beside, threads=1) as beside:
                print_bits([model, beside], heldout, train)
        else:
            print_bits([model], heldout, train)
        print_samples(model, train)


if __name__ == "__main__":
    main()
