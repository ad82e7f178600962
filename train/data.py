"""Turn the texts into tokens: held-out works apart, a tokenizer, plain documents, conversations.

    python data.py --work DIR    # tokenizer.json, train.txt, heldout.json and token ids in uint16:

train.bin: documents in random order, a conversation out of a book being a document too; prose.bin:
the same without conversations; answers.bin: rows of questions with their answers.
"""

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
import wordnet
from answers import TEXTS, Questions
from sources import READERS, fetch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Whole works the model never sees, in any edition or translation.
HELD_OUT = {
    "Ruth", "Ecclesiastes", "James", "as_you_like_it", "macbeth", "Northanger Abbey",
    "1863_abraham_lincoln_r", "1962_john_f_kennedy_d",
}  # fmt: skip
PIECE = 6000  # characters of one document at most: the start of a text must not be rare
MAX_TURN = 900  # characters of one message
ROW, N_ROWS = 256, 40_000  # tokens of whole conversations with answers, and how many such rows
ANSWER = 0x8000  # the bit of a token of answers.bin that is to be predicted


def speeches(scene):
    """Successive speeches of a scene: a block under a short line that ends in a full stop."""
    for block in scene.split("\n\n"):
        lines = block.strip().split("\n")
        if len(lines) > 1 and re.fullmatch(r"[A-Z][A-Za-z' ]{1,24}\.", lines[0]):
            text = re.sub(r"\[[^\]]*\]|\([^)]*\)", " ", " ".join(lines[1:])).replace("_", "")
            yield " ".join(text.split())
        elif not re.match(r"[\[(]", block):
            yield None  # not a speech: the conversation is broken


def quotations(chapter):
    """Successive paragraphs of a novel that open with a quotation, narration dropped."""
    for paragraph in chapter.split("\n\n"):
        spoken = re.findall(r'"([^"]+)"', paragraph)
        whole = paragraph.startswith('"') and paragraph.count('"') == 2 * len(spoken)
        yield " ".join(" ".join(spoken).split()) if whole else None


TURNS = {"play": speeches, "novel": quotations}


def conversations(turns, rng):
    """Runs of 2, 4 or 6 messages; a turn that is None, or too long, ends a run."""
    run = []
    for turn in [*turns, None]:
        if turn and 2 <= len(turn) <= MAX_TURN:
            run.append(turn)
            continue
        while len(run) >= 2:
            n = min(rng.choice([2, 2, 2, 4, 4, 6]), len(run) // 2 * 2)
            yield run[:n]
            run = run[n:]
        run = []


def chat_texts(messages, system=None):
    """As a chat is used: the last reply is tokenised apart from its prompt "Assistant: "."""
    roles = ["User", "Assistant"] * (len(messages) // 2)
    prompt = "".join(f"{r}: {m}{TURN}" for r, m in zip(roles[:-1], messages[:-1], strict=True))
    prompt = f"System: {system}{TURN}{prompt}" if system else prompt
    return f"{BEGIN}{prompt}Assistant: ", messages[-1] + TURN + END


def chat_ids(tokenizer, messages):
    prompt, reply = chat_texts(messages)
    return tokenizer.encode(prompt).ids + tokenizer.encode(reply).ids


def answer_rows(tokenizer, questions, n_rows, rng):
    """(n_rows, ROW) ids of whole conversations; what is to be predicted has the bit ANSWER."""
    rows, open_rows = [], []
    while len(rows) < n_rows:
        texts = []
        for _ in range(20000):
            messages = [m for _ in range(rng.choice([1] * 6 + [2])) for m in questions.draw()[1:]]
            system = rng.choice(TEXTS["systems"]) if rng.random() < 0.06 else None
            texts += chat_texts(messages, system)
        ids = [np.array(e.ids, np.uint16) for e in tokenizer.encode_batch(texts)]
        for prompt, reply in zip(ids[::2], ids[1::2], strict=True):
            example = np.concatenate([prompt, reply | ANSWER])
            row = next((r for r in open_rows if sum(map(len, r)) + len(example) <= ROW), None)
            if row is None:
                row = []
                open_rows.append(row)
            row.append(example)
            if len(open_rows) > 12:  # rows that wait for something short
                rows.append(np.concatenate(open_rows.pop(0)))
    end = tokenizer.token_to_id(END)
    full = [np.pad(r, (0, ROW - len(r)), constant_values=end) for r in rows[:n_rows]]
    rng.shuffle(full)
    return np.stack(full)


def pieces(text):
    """Cut at line ends into documents of at most about PIECE characters."""
    piece, size = [], 0
    for line in text.split("\n"):
        if size + len(line) > PIECE and piece:
            yield "\n".join(piece).strip()
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    yield "\n".join(piece).strip()


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 3,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([BEGIN, END, TURN])  # the last three ids, as in Llama 3
    return tokenizer


def sort_texts(folder):
    """Documents and conversations to train on, the held-out works, characters a source."""
    documents, chats, heldout, sizes = [], [], {}, {}
    rng = random.Random(1)
    for source, reader in READERS.items():
        for work, kind, text in reader(folder / source):
            if work in HELD_OUT:
                if source != "web":  # one translation is enough to measure with
                    heldout[work] = (heldout.get(work, "") + "\n\n" + text).strip()
                continue
            sizes[source] = sizes.get(source, 0) + len(text)
            documents += filter(None, pieces(text))
            if kind in TURNS:
                chats += conversations(TURNS[kind](text), rng)
    missing = HELD_OUT - set(heldout)
    if missing:
        raise SystemExit(f"held-out works not found: {sorted(missing)}")
    return documents, chats, heldout, sizes, rng


def make_questions(packages, old_questions, seed):
    by_word, lemmas, names = wordnet.read(packages / "wordnet")
    nouns = wordnet.nouns(by_word)
    return Questions(nouns, by_word, lemmas, old_questions, names, random.Random(seed))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    fetch(work / "packages")
    documents, chats, heldout, sizes, rng = sort_texts(work / "packages")
    tokenizer = train_tokenizer([*documents, *(f"User: {a} Assistant: {b}" for a, b, *_ in chats)])
    plain = [e.ids for e in tokenizer.encode_batch([BEGIN + d + END for d in documents])]
    chat = [chat_ids(tokenizer, c) for c in chats]
    everything = plain + chat
    rng.shuffle(everything)
    tokenizer.save(str(work / "tokenizer.json"))
    rng.shuffle(plain)
    np.concatenate([np.array(ids, np.uint16) for ids in plain]).tofile(work / "prose.bin")
    questions = make_questions(work / "packages", [c[0] for c in chats if len(c[0]) < 120], 1)
    answer_rows(tokenizer, questions, N_ROWS, random.Random(2)).tofile(work / "answers.bin")
    np.concatenate([np.array(ids, np.uint16) for ids in everything]).tofile(work / "train.bin")
    (work / "train.txt").write_text("\n".join(documents))
    (work / "heldout.json").write_text(json.dumps(heldout, indent=1))
    n_plain, n_chat = sum(map(len, plain)), sum(map(len, chat))
    summary = {
        "characters": sizes,
        "documents": len(documents),
        "conversations": len(chats),
        "tokens": n_plain + n_chat,
        "chat_share": round(n_chat / (n_plain + n_chat), 3),
        "characters_per_token": round(sum(sizes.values()) / n_plain, 2),
        "heldout": {work: len(text) for work, text in heldout.items()},
    }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
