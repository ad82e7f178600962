"""Scaled RoPE: frequencies by the papers' formulas in float64, and what files declare."""

import logging
import math

import numpy as np
import pytest
from support.configs import from_gguf, from_hf

from bitnet import FormatError
from bitnet.checkpoints.export_config import differences, gguf_metadata, hf_files
from bitnet.compute import operands, ops
from bitnet.models.rope import inverse_frequencies
from bitnet.models.rope_scaling import RopeScaling, default_attention_factor, to_gguf, to_hf

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def yarn_in_float64(head_dim, theta, factor, original, fast=32.0, slow=1.0, truncate=True):
    """Equations 15 to 23 of Peng et al. 2023, pair by pair, as transformers and llama.cpp round."""
    pairs = [
        head_dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta))
        for n in (fast, slow)
    ]
    low, high = (math.floor(pairs[0]), math.ceil(pairs[1])) if truncate else pairs
    low, high = max(low, 0), min(high, head_dim - 1)
    found = []
    for j in range(head_dim // 2):
        plain = theta ** (-2 * j / head_dim)
        divided = min(max((j - low) / max(high - low, 0.001), 0), 1)
        found.append(plain * (1 - divided) + plain / factor * divided)
    return np.array(found)


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "original", "more"),
    [
        (128, 1e6, 4.0, 16384, {}),
        (64, 1e4, 4.0, 64, {}),
        (128, 1e4, 40.0, 4096, {"fast": 16.0, "slow": 2.0}),
        (80, 5e5, 2.5, 2048, {"truncate": False}),
        (32, 1e4, 1.0, 32, {}),
        (16, 1e4, 8.0, 3, {}),  # every pair is slow
    ],
)
def test_frequencies_of_yarn(head_dim, theta, factor, original, more):
    names = {"fast": "beta_fast", "slow": "beta_slow"}
    keywords = {names.get(name, name): value for name, value in more.items()}
    scaling = RopeScaling("yarn", factor, original, **keywords)
    found = inverse_frequencies(head_dim, theta, scaling)
    expected = yarn_in_float64(head_dim, theta, factor, original, **more)
    assert found.dtype == np.float32 and np.allclose(found, expected, rtol=4e-7, atol=0)
    if factor > 1 and original > 100:  # some stay, some are divided
        plain = inverse_frequencies(head_dim, theta)
        assert found[0] == plain[0] and found[-1] == pytest.approx(plain[-1] / factor)


def test_frequencies_of_linear_scaling():
    found = inverse_frequencies(64, 1e4, RopeScaling("linear", 8.0))
    assert np.array_equal(found, inverse_frequencies(64, 1e4) / np.float32(8))


def test_the_attention_factor():
    assert default_attention_factor(4.0) == pytest.approx(1.138629, abs=1e-6)
    assert default_attention_factor(1.0) == 1
    frequencies = np.ones(8, np.float32)
    tables = np.zeros((2, 2, 4, 8), np.float32)
    batch = operands.Batch(3, 1, 1, partials=np.zeros(1 << 16, np.float32))
    batch.rows_only(0)
    for table, factor in zip(tables, (1, 1.25), strict=True):
        rope = operands.Rope(frequencies, table, False, 512, factor)
        batch.set([(cache_of_three(), 3)])
        ops.rope_table(rope, batch)
    assert np.array_equal(tables[1, :, :3], tables[0, :, :3] * np.float32(1.25))


def cache_of_three():
    from bitnet.runtime.kv_cache import KVCache
    from bitnet.runtime.pool import Pool

    return KVCache(Pool(1 << 20), n_layers=1, n_kv_heads=1, head_dim=16, capacity=128, dtype="f32")


# what files declare -------------------------------------------------------------------------------


def test_config_json():
    assert from_hf(rope_scaling=YARN).rope_scaling == RopeScaling(
        "yarn", 4.0, 512, default_attention_factor(4.0)
    )
    old = {"type": "linear", "factor": 2}
    assert from_hf(rope_scaling=old).rope_scaling == RopeScaling("linear", 2.0)
    for none in (None, {}, {"rope_type": "default"}, {"type": "linear", "factor": 1.0}):
        assert from_hf(rope_scaling=none).rope_scaling is None
    newer = YARN | {"rope_theta": 1e6, "beta_fast": 16, "beta_slow": None, "truncate": False}
    config = from_hf(rope_theta=None, rope_parameters=newer | {"attention_factor": 1.5})
    assert config.rope_theta == 1e6
    assert config.rope_scaling == RopeScaling("yarn", 4.0, 512, 1.5, 16.0, 1.0, False)
    scales = from_hf(rope_scaling=YARN | {"mscale": 0.5, "mscale_all_dim": 1.0}).rope_scaling
    factors = [default_attention_factor(4.0, scale) for scale in (0.5, 1.0)]
    assert scales.attention_factor == factors[0] / factors[1]


def test_gguf():
    def scaled(**keys):
        return from_gguf(**{f"rope__scaling__{k}": v for k, v in keys.items()}).rope_scaling

    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 512}
    assert scaled(**yarn) == RopeScaling("yarn", 4.0, 512, default_attention_factor(4.0))
    assert scaled(**yarn, attn_factor=1.5).attention_factor == 1.5 * default_attention_factor(4.0)
    assert scaled(**yarn, yarn_beta_fast=16.0).beta_fast == 16
    assert scaled(type="linear", factor=2.0) == scaled(factor=2.0) == RopeScaling("linear", 2.0)
    assert from_gguf(rope__scale_linear=2.0).rope_scaling == RopeScaling("linear", 2.0)
    for none in ({}, {"type": "none", "factor": 3.0}, {"type": "linear"}, {"factor": 1.0}):
        assert scaled(**none) is None


def test_an_original_context_that_is_not_stated(caplog):
    with caplog.at_level(logging.WARNING, "bitnet"):
        found = from_gguf(rope__scaling__type="yarn", rope__scaling__factor=2.0)
        assert found.rope_scaling.original_context == found.max_position_embeddings
        given = {"rope_type": "yarn", "factor": 2.0}
        config = from_hf(rope_scaling=given)
        assert config.rope_scaling.original_context == config.max_position_embeddings
    assert "original_context_length: the context, 4096, is taken" in caplog.text
    assert "original_max_position_embeddings: the context" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": None}, r"factor: missing \(a number from 1 to 65536"),
        ({"factor": 0}, r"factor: 0 "),
        ({"factor": -4.0}, r"factor: -4\.0 "),
        ({"factor": float("nan")}, "factor: nan"),
        ({"factor": "4"}, "factor: 4 "),
        ({"factor": True}, "factor: True"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings: 0"),
        ({"original_max_position_embeddings": 512.0}, r"embeddings: 512\.0"),
        ({"beta_fast": -1}, "beta_fast: -1"),
        ({"attention_factor": float("inf")}, "attention_factor: inf"),
        ({"truncate": 1}, "truncate: 1"),
        (
            {"rope_type": "spiral"},
            r"rope_type: spiral \(this version supports",
        ),
        ({"rope_type": "llama3"}, "rope_type: llama3"),
    ],
)
def test_broken_declarations_of_config_json(changes, message):
    with pytest.raises(FormatError, match=message):
        from_hf(rope_scaling=YARN | changes)


def test_yarn_needs_a_base():
    with pytest.raises(FormatError, match=r"freq_base|rope_theta: 1\.0 \(more than 1"):
        from_hf(rope_theta=1.0, rope_scaling=YARN)


@pytest.mark.parametrize("scaling", [
    RopeScaling("linear", 2.0),
    RopeScaling("yarn", 4.0, 512, default_attention_factor(4.0)),
    RopeScaling("yarn", 2.5, 100, 1.5, 16.0, 2.0),
])  # fmt: skip
def test_both_containers_say_the_same(scaling):
    config = from_hf(rope_scaling=to_hf(scaling))
    assert config.rope_scaling == scaling
    keys = {k.replace("rope.scaling.", "rope__scaling__"): v for k, v in to_gguf(scaling).items()}
    again = from_gguf(
        **{k: np.float32(v).item() if type(v) is float else v for k, v in keys.items()}
    )
    assert str(again.rope_scaling) == str(scaling)
    written = hf_files(config, "bitlinear", {})["config.json"]
    assert b'"rope_scaling"' in written
    assert "rope.scaling.factor" in " ".join(gguf_metadata(config, "x"))
    assert differences(config, from_hf()) == ["rope_scaling"]
