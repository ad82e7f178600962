"""Choosing tokens, against a plain float64 definition, and that a seed fixes the text."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.compute import ops
from bitnet.generation.sampling import MIN_TEMPERATURE, Sampling, best, make_sampler

VOCAB = 1000


def some_logits(seed=0, n=VOCAB, spread=3.0):
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def sampler(n=VOCAB, **parameters):
    return make_sampler(Sampling(**{"seed": 1, **parameters}), n)


def allowed(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """{id: probability} after all restrictions, in float64, the way transformers defines them."""
    scaled = logits.astype(np.float64) / temperature
    order = sorted(range(len(logits)), key=lambda i: (-scaled[i], i))[: top_k or None]
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
    assert sampler(7, temperature=MIN_TEMPERATURE / 2)(logits, 0) == 3
    assert sampler(7, temperature=5, top_k=1)(logits, 0) == 3


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 4.0},
        {"top_k": 3},
        {"top_k": VOCAB + 5},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.7, "temperature": 0.8},
        {"top_p": 0.9, "min_p": 0.05},
        {"top_k": 50, "min_p": 0.01},
    ],
)
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
    logits = some_logits(n=20_000, spread=1.0)  # thousands of tokens are needed
    expected = allowed(logits, top_p=0.8)
    choose = sampler(20_000, temperature=1.0, top_p=0.8)
    assert len(expected) > 2048
    assert set(np.flatnonzero(drawn(choose, logits, 500))) <= set(expected)


def split_mix(start, i):
    """Number i of SplitMix64 (Steele, Lea and Flood 2014, figure 16)."""
    x = (start + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
    return mixed(x)


def mixed(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def noise(seed, position, n):
    """Gumbel noise of ids 0 to n - 1."""
    key = split_mix(mixed(seed), position)
    v = [((split_mix(key, i) >> 12) + 0.5) * 2.0**-52 for i in range(n)]
    return np.array([-math.log(-math.log1p(-x)) for x in v])


def test_split_mix_is_the_published_one():
    """The first numbers of Java's SplittableRandom(1234567)."""
    numbers = [split_mix(1234567, i) for i in range(3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("parameters", [{}, {"top_p": 0.8}, {"top_p": 0.3, "min_p": 0.2}])
def test_the_greatest_sum_of_logit_and_noise_wins(parameters):
    for position, temperature in ((p, t) for p in range(60) for t in (0.2, 1.0, 30.0)):
        logits = some_logits(position, n=400)
        chances = allowed(logits, temperature, **parameters)
        keys = logits / temperature + noise(77, position, 400)
        expected = max(chances, key=lambda i: keys[i])
        choose = sampler(400, temperature=temperature, seed=77, **parameters)
        assert choose(logits, position) == expected


def test_noise_at_both_ends_of_its_range():
    """Ids with the least and greatest of 200,000 numbers win where they should."""
    n = 200_000
    g = noise(3, 0, n)
    assert ops.sample(np.zeros(n, np.float32), 3, 0, 1.0) == g.argmax()
    low, high = int(g.argmin()), int(g.argmax())
    assert g[low] < -2.4 and g[high] > 10
    for difference, winner in ((0.001, low), (-0.001, high)):
        logits = np.full(n, -100, np.float32)
        logits[low], logits[high] = g[high] - g[low] + difference, 0
        assert ops.sample(logits, 3, 0, 1.0) == winner


def test_ids_that_may_be_drawn():
    logits = some_logits()
    ids = np.array([700, 3, 41], np.int32)
    drawn_of = {ops.sample(logits, 1, p, 5.0, ids=ids) for p in range(50)}
    assert drawn_of == set(ids.tolist())
    for bad in ([1000], [-1]):
        with pytest.raises(ValueError, match=f"token id {bad[0]} is not in 0..999"):
            ops.sample(logits, 1, 0, 1.0, ids=np.array(bad, np.int32))
    for arguments in ((0.0,), (math.nan,), (1.0, 0.0), (1.0, 1.0, 1.5), (1.0, 1.0, 0.0, ids[:0])):
        with pytest.raises(ValueError, match="temperature"):
            ops.sample(logits, 1, 0, *arguments)
    with pytest.raises(ValueError, match="the greatest logit is inf"):
        ops.sample(np.array([0, np.inf], np.float32), 1, 0, 1.0)


def test_the_same_seed_and_position_give_the_same_token():
    logits = some_logits()
    one, other, third = (sampler(temperature=1.0, seed=seed) for seed in (5, 5, 6))
    tokens = [one(logits, p) for p in range(50)]
    assert tokens == [other(logits, p) for p in reversed(range(50))][::-1]
    assert tokens != [third(logits, p) for p in range(50)]
    assert len(set(tokens)) > 10


def test_draws_that_must_never_change():
    logits = (np.arange(1000) * 7919 % 1000).astype(np.float32) / 100
    tokens = [sampler(temperature=0.9, top_p=0.95, seed=11)(logits, p) for p in range(6)]
    assert tokens == [459, 741, 791, 963, 668, 915]


def test_a_seed_is_drawn_where_none_is_given():
    seeds = {make_sampler(Sampling(temperature=1.0), VOCAB).seed for _ in range(3)}
    assert len(seeds) == 3
    again = make_sampler(Sampling(temperature=1.0, seed=min(seeds)), VOCAB)
    assert again.seed == min(seeds)


@given(
    st.lists(st.sampled_from([-1.0, 0.0, -0.0, 1.0, 2.5, -np.inf]), min_size=1, max_size=40),
    st.integers(1, 50),
)
def test_best_orders_by_logit_then_id(values, n):
    logits = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]
    assert best(logits, n).tolist() == expected


def test_repetition_penalty_as_in_transformers():
    logits = np.array([2.0, -1.0, 1.5, 0.5], np.float32)
    choose = sampler(4, repetition_penalty=2.0)
    adjusted = choose.processor(logits, [0, 1])
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
        logits, 0, [3]
    )
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
    ],
)
def test_parameters_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("bias", "where"),
    [
        ({VOCAB: 1.0}, "1000"),
        ({-1: 1.0}, "-1"),
        ({"5": 1.0}, "'5'"),
        ({5: math.nan}, "nan"),
        ({5: math.inf}, "inf"),
        ({5: "x"}, "'x'"),
        (dict.fromkeys(range(5000), 1.0), "5000 entries"),
    ],
)
def test_biases_out_of_range(bias, where):
    with pytest.raises(ValueError, match=f"logit_bias.*{where}"):
        sampler(logit_bias=bias)
