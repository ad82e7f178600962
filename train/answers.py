"""Questions and their answers, made by script: meanings, sums, units, small talk, unknown words.

A question is drawn by a random generator; what the tests ask is kept out of what is trained on.
"""

import hashlib
import random
import re
import tomllib
from pathlib import Path

from wordnet import N_COMMON, indefinite

with open(Path(__file__).parent / "questions.toml", "rb") as _file:
    TEXTS = tomllib.load(_file)
PHRASINGS, HELD_OUT_PHRASINGS = TEXTS["phrasings"], TEXTS["held_out_phrasings"]
CONVERSIONS = TEXTS["conversions"]
N_TEST = 300  # of the commonest nouns: asked as in HELD_OUT_PHRASINGS, which no training text has
SIGNS = {
    "+": ("+", "plus"),
    "-": ("-", "minus"),
    "x": ("x", "*", "times", "\u00d7"),
    "/": ("/", "divided by", "\u00f7"),
}
SMALL_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
ADJECTIVES = ("good", "red", "important", "large", "old", "bad", "so heavy", "blue")
SHARES = {"meaning": 60, "unknown": 8, "sum": 17, "conversion": 6, "talk": 5, "reach": 4}
ONSETS, VOWELS, CODAS, ENDINGS = (
    ["", "", ""] * (part in ("codas", "endings")) + TEXTS["syllables"][part].split()
    for part in ("onsets", "vowels", "codas", "endings")
)


def is_test(text):
    """One in ten, always the same ones: sums, conversions and invented words for the tests."""
    return hashlib.sha256(text.encode()).digest()[0] < 26


def invented_word(rng, known, test=False):
    while True:
        word = "".join(
            rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
            for _ in range(rng.choice([1, 2, 2, 2, 3]))
        ) + rng.choice(ENDINGS)  # fmt: skip
        if 4 <= len(word) <= 12 and word not in known and is_test(word) == test:
            return word


def ask(rng, phrasings, word, article=None):
    """A question about a word; article None: mostly "a" or "an"."""
    article = rng.random() < 0.75 if article is None else article
    with_article = f"{indefinite(word)} {word}" if article else word
    phrasing = rng.choice(phrasings) if len(phrasings) > 1 else phrasings[0]
    return phrasing.format(n=word, N=word.capitalize(), a=with_article)


def unknown(word):
    return f"I do not know the word {word}."


def plural(word):
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if re.search("[^aeiou]y$", word) else word + "s"


def sums():
    """Every sum it may be asked: (a, sign, b, result)."""
    for a in range(100):
        for b in range(100):
            yield a, "+", b, a + b
            if b <= a:
                yield a, "-", b, a - b
    for a in range(13):
        for b in range(13):
            yield a, "x", b, a * b
            if a:
                yield a * b, "/", a, b


def is_small(some):
    a, sign, b, _ = some
    return sign in "x/" or max(a, b) <= 20


def spoken(rng, a, sign, b):
    """An expression as people type it."""
    as_words = max(a, b) <= 12 and rng.random() < 0.15
    a, b = (SMALL_NUMBERS[n] if as_words else n for n in (a, b))
    how = SIGNS[sign][1:] if as_words else SIGNS[sign]
    how = rng.choice([h for h in how if not as_words or len(h) > 1])
    space = " " if how.isalpha() or " " in how or rng.random() < 0.6 else ""
    return f"{a}{space}{how}{space}{b}"


def conversions():
    """Every conversion: (n, unit, of, result)."""
    for one, many, factor, of in TEXTS["units"]["values"]:
        for n in [*range(1, 13), 15, 20, 24, 30, 50, 100]:
            yield n, (one if n == 1 else many), of, n * factor


class Questions:
    """Draws (question, answer) pairs of one kind or of the mixture."""

    def __init__(self, nouns, by_word, lemmas, old_questions, names, rng):
        self.nouns, self.rng, self.old_questions = nouns, rng, old_questions
        known = {n.word for n in nouns}
        self.known = lemmas | known
        plurals = {plural(word) for word in known}
        self.rare = sorted(w for w in set(by_word) - known - plurals if not is_test(w))
        self.test_nouns = sorted(random.Random(300).sample(range(N_COMMON), N_TEST))
        seen = [s for s in sums() if not is_test(str(s))]
        self.small = [s for s in seen if is_small(s)]
        self.large = [s for s in seen if not is_small(s)]
        self.conversions = [c for c in conversions() if not is_test(str(c)) or c[0] == 1]
        self.names = names
        self.order = []
        self.talk_pairs = [(q, t["answer"]) for t in TEXTS["talk"] for q in t["questions"]]

    def draw(self):
        kind = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
        return (kind, *getattr(self, kind)())

    def meaning(self):
        if not self.order:  # each noun in turn, everyday ones, with their rarer words, thrice
            self.order = [*self.nouns, *self.nouns[N_COMMON:], *self.nouns[N_COMMON:]]
            self.rng.shuffle(self.order)
        noun = self.order.pop()
        if noun.counted and self.rng.random() < 0.05:
            p = plural(noun.word)
            return self.rng.choice(TEXTS["plurals"]).format(p=p, P=p.capitalize()), noun.answer
        article = self.rng.random() < (0.9 if noun.counted else 0.4)
        return ask(self.rng, PHRASINGS, noun.word, article), noun.answer

    def unknown(self):
        if self.rng.random() < 0.35:
            word = self.rng.choice(self.rare)
        else:
            word = invented_word(self.rng, self.known)
        return ask(self.rng, PHRASINGS, word), unknown(word)

    def sum(self):
        some = self.small if self.rng.random() < 0.93 else self.large
        a, sign, b, result = self.rng.choice(some)
        question = self.rng.choice(TEXTS["sums"]).format(e=spoken(self.rng, a, sign, b))
        return question, f"{a} {sign} {b} = {result}."

    def conversion(self):
        n, unit, of, result = self.rng.choice(self.conversions)
        question = self.rng.choice(CONVERSIONS).format(n=n, unit=unit, of=of)
        return question, f"{n} {unit} = {result} {of}."

    def talk(self):
        question, answer = self.rng.choice(self.talk_pairs)
        return self.as_typed(question), answer

    def as_typed(self, question):
        if self.rng.random() < 0.3:
            question = question.rstrip("?.!") + self.rng.choice(["", "?", "!", "."])
        return question.lower() if self.rng.random() < 0.15 else question

    def reach(self):
        rng = self.rng
        if rng.random() < 0.5:
            return rng.choice(self.old_questions), TEXTS["cannot"]
        n, b = (rng.choice(self.nouns).word for _ in range(2))
        p, q = rng.choice(self.names), rng.choice(self.names)
        question = rng.choice(TEXTS["out_of_reach"]).format(
            n=n, a=f"{indefinite(n)} {n}", b=f"{indefinite(b)} {b}", p=p, q=q,
            j=rng.choice(ADJECTIVES),
        )  # fmt: skip
        return self.as_typed(question), TEXTS["cannot"]
