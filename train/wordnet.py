"""Nouns and what they mean, from WordNet 3.0's own files."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

N_COMMON = 1000  # by WordNet's counts of tagged senses; then EVERYDAY
MAX_GLOSS = 100  # characters
QUESTIONS = Path(__file__).parent / "questions.toml"
EVERYDAY = tomllib.loads(QUESTIONS.read_text())["everyday"].split()
RUDE = re.compile(r"\b(insulting|offensive|vulgar|disparag|obscen|ethnic slur|slang|sexual|coitus)")
CONCRETE = {5, 6, 8, 13, 17, 18, 20, 27}  # animal artifact body food object person plant substance
UNCOUNTED = {"data", "media", "clothing", "police", "equipment", "furniture", "bread", "money"}
COUNTED = {3, 5, 6, 8, 11, 14, 15, 17, 18, 20, 25, 28}  # ... event group location shape time
CLAUSES = (", ", " that ", " which ", " who ", " with ", " usually ", " used ", " and ", " for ",
           " in ", " of ")  # fmt: skip
DETERMINERS = {
    "a", "an", "the", "any", "some", "something", "someone", "anything", "each", "one", "two",
    "either", "all", "several", "various", "that", "how", "your", "not", "being", "having", "used",
    "what", "whatever", "both", "those", "these", "every", "four", "three", "large", "small",
}  # fmt: skip


@dataclass
class Noun:
    word: str
    answer: str  # one sentence
    glosses: list[str]  # of all senses: what an answer may say
    counted: bool  # "a lighthouse", not "a water"


def read(folder):
    """word -> (tag count, its senses: lexicographer file and gloss); all lemmas; some names."""
    folder = next(folder.rglob("data.noun")).parent
    counts = {}
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        counts[key] = int(count)
    synsets = {}
    for line in (folder / "data.noun").read_text().splitlines():
        if not line.startswith(" "):
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            n_words = int(fields[3], 16)
            synsets[fields[0]] = int(fields[1]), fields[4 : 4 + 2 * n_words : 2], tidy(gloss)
    by_word, lex_ids = {}, {}
    for key, count in counts.items():
        word, rest = key.split("%")
        kind, lex, _ = rest.split(":", 2)
        if kind == "1":
            lex_ids.setdefault(word, {}).setdefault(int(lex), []).append(count)
    for line in (folder / "index.noun").read_text().splitlines():
        fields = line.split()
        if line.startswith(" ") or not re.fullmatch("[a-z]{3,}", fields[0]):
            continue
        word, n_pointers = fields[0], int(fields[3])
        senses = [synsets[offset] for offset in fields[6 + n_pointers :]]
        if word in senses[0][1]:  # not the name of one person or place
            total = sum(sum(c) for c in lex_ids.get(word, {}).values())
            by_word[word] = total, [(lex, gloss) for lex, _, gloss in senses]
    lemmas = set()
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"index.{kind}").read_text().splitlines():
            lemmas.update(line.split(" ", 1)[0].split("_"))
    names = sorted(
        {
            words[0].replace("_", " ")
            for lex, words, _ in synsets.values()
            if lex in (15, 18) and re.fullmatch("[A-Z][a-z]+(_[A-Z][a-z]+)?", words[0])
        }
    )
    return by_word, lemmas, names


def tidy(gloss):
    """The first statement of a gloss, without examples, asides and what is too long."""
    gloss = re.sub(r"\([^)]*\)", " ", gloss)
    gloss = re.split(r'[;"]|: ', gloss)[0]
    gloss = re.sub(r"\s+([,.])", r"\1", " ".join(gloss.split())).strip(" ,.")
    while len(gloss) > MAX_GLOSS:
        cut = max(gloss.rfind(c, 25, MAX_GLOSS + 1) for c in CLAUSES)
        if cut < 0:
            return ""
        gloss = gloss[:cut].strip(" ,.")
    return gloss


def indefinite(word):
    an = re.match(r"[aeio]|u(?!n[ai]|s[aeiu]|r[aeio]|t[aei])|hour|hono|heir", word)
    return "an" if an and not re.match(r"one\b|once|eu|ew", word) else "a"


def fits(word, gloss):
    return len(gloss) >= 8 and word not in gloss.split() and not RUDE.search(gloss)


def chosen_sense(word, senses):
    """The commonest; of everyday things the first that can be said, the food before the plant."""
    if word not in EVERYDAY:
        return senses[0] if fits(word, senses[0][1]) else None
    good = [sense for sense in senses if fits(word, sense[1]) and sense[0] in CONCRETE | COUNTED]
    food = [sense for sense in good[:2] if sense[0] == 13]
    return next(iter(food or good), senses[0] if fits(word, senses[0][1]) else None)


def noun(word, senses):
    sense = chosen_sense(word, senses)
    if sense is None or RUDE.search(" ".join(g for _, g in senses[:2])):
        return None
    lex, gloss = sense
    first = gloss.split()[0]
    said = gloss
    plural = first.endswith("s") and not first.endswith(("ss", "us", "is"))
    if lex in CONCRETE and first not in DETERMINERS and not plural and not first.endswith("ing"):
        said = f"{indefinite(first)} {gloss}"
    starts = ("a", "an", "any", "someone", "one", "either")
    counted = lex in COUNTED and said.split()[0] in starts and word not in UNCOUNTED
    subject = f"{indefinite(word)} {word}" if counted else word
    if first == "the" and lex in (8, 15, 17):
        subject = f"the {word}"
    answer = f"{subject[0].upper()}{subject[1:]} is {said}."
    glosses = list(dict.fromkeys(g for _, g in senses if g))
    return Noun(word, answer, glosses, counted)


def nouns(by_word):
    """The nouns it learns, commonest first; EVERYDAY behind them."""
    ranked = sorted((w for w in by_word if by_word[w][0]), key=lambda w: (-by_word[w][0], w))
    ranked = [w for w in ranked if not re.search("[^sui]s$", w)]  # plurals
    found = [n for w in ranked if (n := noun(w, by_word[w][1]))][:N_COMMON]
    more = sorted(set(EVERYDAY) & set(by_word) - {n.word for n in found})
    return found + [n for w in more if (n := noun(w, by_word[w][1]))]
