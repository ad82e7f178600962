"""Choosing tokens, against a plain float64 definition, and that a seed fixes the text."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.sampling import COLDEST, Sampling, best, draw, make_sampler, total, uniform

VOCAB = 1000


def some_logits(seed=0, n=VOCAB, spread=3.0):
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def sampler(n=VOCAB, **parameters):
    return make_sampler(Sampling(**{"seed": 1, **parameters}), n)


def allowed(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """{id: probability} after all restrictions, in float64, the way transformers defines them."""
    scaled = logits.astype(np.float64) / temperature
    order = sorted(range(len(logits)), key=lambda i: (-scaled[i], i))[:top_k or None]
    weights = np.exp(scaled[order] - scaled[order[0]])
    before = np.cumsum(weights) - weights
    weights = weights * (before < top_p * weights.sum()) * (weights >= min_p)
    return {i: w / weights.sum() for i, w in zip(order, weights, strict=True) if w > 0}


def drawn(choose, logits, n):
    found = np.zeros(len(logits), int)
    for position in range(n):
        found[choose(logits, position)] += 1
    return found


def test_greedy_takes_the_first_of_equals():
    logits = np.zeros(7, np.float32)
    logits[[3, 5]] = 2
    assert sampler(7)(logits, 0) == 3
    assert sampler(7, temperature=COLDEST / 2)(logits, 0) == 3
    assert sampler(7, temperature=5, top_k=1)(logits, 0) == 3
    assert sampler().needs == "greedy"
    assert sampler(temperature=1, top_k=5).needs == "top_k"
    assert sampler(temperature=1).needs == "full"


@pytest.mark.parametrize("parameters", [
    {}, {"temperature": 0.3}, {"temperature": 4.0}, {"top_k": 3}, {"top_k": VOCAB + 5},
    {"top_p": 0.5}, {"top_p": 0.999}, {"top_p": 1e-9}, {"min_p": 0.2}, {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.7, "temperature": 0.8}, {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 50, "min_p": 0.01},
])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_frequencies(parameters, spread):
    logits = some_logits(spread=spread)
    expected = allowed(logits, **parameters)
    n = 3000
    found = drawn(sampler(**{"temperature": 1.0, **parameters}), logits, n)
    assert set(np.flatnonzero(found)) <= set(expected)
    for i in list(expected)[:5]:
        p = expected[i]
        assert abs(found[i] - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1e-9


def test_top_p_over_a_vocabulary_that_is_not_sorted_whole():
    logits = some_logits(n=20_000, spread=1.0)                   # thousands of tokens are needed
    expected = allowed(logits, top_p=0.8)
    choose = sampler(20_000, temperature=1.0, top_p=0.8)
    assert len(expected) > 2048
    assert set(np.flatnonzero(drawn(choose, logits, 500))) <= set(expected)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000, 8200])
def test_draws_follow_the_weights(n):
    weights = np.ones(n, np.float32)
    weights[1::2] = 0
    assert total(weights) == pytest.approx(weights.sum(dtype=np.float64), rel=1e-12)
    found = {draw(weights, number) for number in np.linspace(0, 1 - 2**-53, n + 2)}
    assert found == set(range(0, n, 2))
    assert draw(np.eye(1, n, n - 1, dtype=np.float32)[0], 1 - 2**-53) == n - 1


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=600),
       st.floats(0, 1, exclude_max=True))
def test_a_weight_of_zero_is_never_drawn(weights, number):
    weights = np.array([*weights, 1], np.float32)
    assert weights[draw(weights, number)] > 0


def test_the_same_seed_and_position_give_the_same_token():
    logits = some_logits()
    one, other, third = (sampler(temperature=1.0, seed=seed) for seed in (5, 5, 6))
    tokens = [one(logits, p) for p in range(50)]
    assert tokens == [other(logits, p) for p in reversed(range(50))][::-1]
    assert tokens != [third(logits, p) for p in range(50)]
    assert len(set(tokens)) > 10


def test_draws_that_must_never_change():
    assert [uniform(7, p) for p in (0, 1, 4096)] == [
        0.8720734548204873, 0.0828426870273763, 0.9103692901757624]
    assert uniform(2**64 - 1, 2**31) == uniform(2**64 - 1, 2**31) < 1
    logits = (np.arange(1000) * 7919 % 1000).astype(np.float32) / 100
    tokens = [sampler(temperature=0.9, top_p=0.95, seed=11)(logits, p) for p in range(6)]
    assert tokens == [25, 136, 963, 383, 533, 235]


def test_a_seed_is_drawn_where_none_is_given():
    seeds = {make_sampler(Sampling(temperature=1.0), VOCAB).seed for _ in range(3)}
    assert len(seeds) == 3
    again = make_sampler(Sampling(temperature=1.0, seed=min(seeds)), VOCAB)
    assert again.seed == min(seeds)


@given(st.lists(st.sampled_from([-1.0, 0.0, -0.0, 1.0, 2.5, -np.inf]), min_size=1, max_size=40),
       st.integers(1, 50))
def test_best_orders_by_logit_then_id(values, n):
    logits = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]
    assert best(logits, n).tolist() == expected


def test_repetition_penalty_as_in_transformers():
    logits = np.array([2.0, -1.0, 1.5, 0.5], np.float32)
    choose = sampler(4, repetition_penalty=2.0)
    adjusted = choose.adjust(logits, [0, 1])
    assert adjusted.tolist() == [1.0, -2.0, 1.5, 0.5]
    assert choose(logits, 0, [0, 1]) == 2
    assert choose(logits, 0) == 0
    assert logits.tolist() == [2.0, -1.0, 1.5, 0.5]


def test_logit_bias():
    logits = some_logits()
    top = int(logits.argmax())
    assert sampler(logit_bias={top: -math.inf})(logits, 0) == int(best(logits, 2)[1])
    assert sampler(logit_bias={5: 100})(logits, 0) == 5
    assert drawn(sampler(temperature=1.0, logit_bias={5: 100}), logits, 20)[5] == 20
    assert drawn(sampler(temperature=2.0, logit_bias={top: -math.inf}), logits, 500)[top] == 0
    forbidding = sampler(3, temperature=1.0, logit_bias=dict.fromkeys(range(3), -math.inf))
    with pytest.raises(ValueError, match="forbids every token"):
        forbidding(logits[:3], 0)
    with pytest.raises(ValueError, match="forbids every token"):
        sampler(3, logit_bias=dict.fromkeys(range(3), -math.inf))(logits[:3], 0)


def test_read_only_logits_stay_as_they_are():
    logits = some_logits()
    logits.flags.writeable = False
    sampler(temperature=1.0, top_p=0.5, min_p=0.1, repetition_penalty=1.3, logit_bias={1: 2})(
        logits, 0, [3])
    assert np.array_equal(logits, some_logits())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("parameters", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}])
def test_logits_that_are_not_finite(bad, parameters):
    logits = some_logits()
    logits[[17, 400]] = bad
    with pytest.raises(ValueError, match=r"position 9: 2 not finite, first token 17"):
        sampler(**parameters)(logits, 9)


def test_extreme_but_finite_logits():
    logits = np.array([-3e38, 3e38, 0], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert sampler(3)(logits, 0) == 1
        assert sampler(3, temperature=1.0)(logits, 0) == 1


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
    ("temperature", "1"), ("temperature", True), ("temperature", None),
    ("top_k", -1), ("top_k", 2.0), ("top_p", 0.0), ("top_p", 1.01), ("min_p", -0.1), ("min_p", 2),
    ("repetition_penalty", 0), ("repetition_penalty", math.nan), ("seed", -1), ("seed", 2**64),
    ("seed", 1.5),
])
def test_parameters_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        Sampling(**{name: value})


@pytest.mark.parametrize(("bias", "where"), [
    ({VOCAB: 1.0}, "1000"), ({-1: 1.0}, "-1"), ({"5": 1.0}, "'5'"), ({5: math.nan}, "nan"),
    ({5: math.inf}, "inf"), ({5: "x"}, "'x'"), (dict.fromkeys(range(5000), 1.0), "5000 entries"),
])
def test_biases_out_of_range(bias, where):
    with pytest.raises(ValueError, match=f"logit_bias.*{where}"):
        sampler(logit_bias=bias)
