"""Special tokens in a text: the longest at each place, however many begin alike."""

import random
import re

from bitnet.text.special_tokens import MAX_BRANCHES, SpecialTokens


def test_the_longest_at_each_place():
    rng = random.Random(1)
    for _ in range(500):
        lengths = rng.choices(range(1, 7), k=rng.randint(1, 30))
        texts = {"".join(rng.choices("ab<", k=length)) for length in lengths}
        longest_first = sorted(texts, key=len, reverse=True)
        wanted = re.compile("|".join(map(re.escape, longest_first)))
        special = SpecialTokens(texts)
        for _ in range(10):
            text = "".join(rng.choices("ab<", k=20))
            found = [piece for piece, is_special in special.split(text) if is_special]
            assert found == wanted.findall(text)
            assert "".join(piece for piece, _ in special.split(text)) == text


def test_thousands_that_begin_alike_are_not_tried_one_by_one():
    pattern = SpecialTokens([f"<unused{i}>" for i in range(6000)]).pattern
    assert pattern.pattern.count("<unused") == 1
    assert pattern.findall("<unused59<unused5999><unused6000>") == ["<unused5999>"]


def test_many_that_begin_each_other():
    texts = ["a" * n for n in range(1, 20 * MAX_BRANCHES)]
    assert SpecialTokens(texts).pattern.findall("a" * 1000) == ["a" * 599, "a" * 401]


def test_none_at_all():
    assert list(SpecialTokens([]).split("a")) == [("a", False)]
