"""Scores of many continuations: the bits of each alone, whatever they share; what is read once."""

import random

import numpy as np
import pytest
from support.talker import TALKER, kv_bytes

import bitnet
from bitnet.generation import scoring

RNG = random.Random(4)
STEM = [RNG.randrange(3, 380) for _ in range(150)]


def ids(n):
    return [RNG.randrange(3, 380) for _ in range(n)]


QUESTIONS = [STEM + ids(40), STEM + ids(7), STEM[:90] + ids(3), ids(20), ids(300)]
PAIRS = [
    *((question, ids(n)) for question in QUESTIONS for n in (1, 5, 12)),
    (STEM, ids(3)),
    (STEM, ids(40)),  # more rows of logits than a batch has
    (STEM[:5], STEM[5:60]),  # its scored tokens are others' context
    (QUESTIONS[0], PAIR_TWICE := ids(4)),
    (QUESTIONS[0], PAIR_TWICE),
    ([3], [4]),
    (ids(500), ids(13)),
]


@pytest.fixture(scope="module", params=[1, 3])
def model(request):
    with bitnet.load(TALKER, threads=1, slots=request.param, prefix_cache=False) as loaded:
        yield loaded


def test_a_list_has_the_bits_of_each_alone(model):
    alone = [model.loglikelihood(*pair) for pair in PAIRS]
    assert model.loglikelihood(PAIRS) == alone
    shuffled = RNG.sample(range(len(PAIRS)), len(PAIRS))
    assert model.loglikelihood([PAIRS[i] for i in shuffled]) == [alone[i] for i in shuffled]
    assert model.loglikelihood([]) == []
    assert kv_bytes(model) == 0


def test_texts(model):
    pairs = [("A ternary weight has", f" {n} values") for n in ("three", "two", "ninety-nine")]
    assert model.loglikelihood(pairs) == [model.loglikelihood(*pair) for pair in pairs]
    with pytest.raises(bitnet.ContextFull):
        model.loglikelihood([*pairs, ("a " * 600, "b")])


def test_what_is_shared_is_read_once(model, monkeypatch):
    n_read = []
    forward = model.scheduler.forward

    def counted(token_ids, *arguments, **keywords):
        n_read.append(len(token_ids))
        return forward(token_ids, *arguments, **keywords)

    monkeypatch.setattr(model.scheduler, "forward", counted)
    question = STEM + [5] * 50
    model.loglikelihood([(question, [6 + i, 7, 8]) for i in range(4)])
    shared = len(question) - 1
    assert sum(n_read) == shared + 4 * 3
    assert len(n_read) == 1 + -(-4 // model.scheduler.slots)


def test_where_memory_allows_no_forks():
    """A model for one sequence of full length, with no page to spare."""
    pairs = [(STEM + [5] * 300, [6 + i] * 60) for i in range(3)]
    with bitnet.load(TALKER, threads=1, prefix_cache=False) as roomy:
        expected = roomy.loglikelihood(pairs)
        planned = {need.purpose: need.nbytes for need in roomy.needs}
        roomy._pool.set_quota("kv", planned["kv"])
        assert roomy.loglikelihood(pairs) == expected
        roomy._pool.set_quota("logits", planned["logits"])
        assert roomy.loglikelihood(pairs) == expected


def test_scores_are_those_of_float64():
    logits = np.random.default_rng(0).normal(0, 9, 5000).astype(np.float32)
    wide = logits.astype(np.float64)
    for token in (0, int(logits.argmax())):
        value, is_likeliest = scoring.score_of(logits, token, 1)
        assert value == pytest.approx(
            wide[token] - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
        )
        assert is_likeliest == (token == logits.argmax())


@pytest.mark.parametrize(
    "pair", [("a", [5]), ([5], "a"), ("a", None), ("a", "b", "c"), "ab", 5, {"a": "b"}]
)
def test_what_is_no_pair(model, pair):
    with pytest.raises(ValueError, match=r"loglikelihood: .*(continuation|one text)"):
        model.loglikelihood([pair])
