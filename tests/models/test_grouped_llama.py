"""A Llama graph in blocks of 64 columns, an odd number in a row, against NumPy in float64.

The shape of SmolLM2-135M: rows of 576 columns, nine heads, rows of q and k permuted with their
scales, as llama.cpp's converter leaves them. bench/support/group_quality.py takes the real one.
"""

import numpy as np
import pytest
from support import grouped_reference, reference
from support.pack_layouts import pack

import bitnet
from bitnet.formats import gguf

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 576, 192, 9, 3, 64, 96, 2
EPS, THETA, GROUP = 1e-5, 1e5, 64
OUTLIERS, LARGEST = (3, 290, 575), 30  # channels of the norms, and how much larger they are
SHAPES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN), "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN), "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(path, {name in the file: its values as float64})"""
    rng, tensors, values = np.random.default_rng(7), [], {}

    def add(name, array, type_name, data):
        tensors.append((f"{name}.weight", array.shape, type_name, data))
        values[name] = array.astype(np.float64)

    def norm(name):
        weight = rng.uniform(0.6, 1.4, HIDDEN).astype(np.float32)
        if name != "output_norm":
            weight[list(OUTLIERS)] *= LARGEST
        add(name, weight, "F32", weight)

    embedding = rng.standard_normal((VOCAB, HIDDEN)).astype("<f2")
    add("token_embd", embedding, "F16", embedding)
    norm("output_norm")
    for block in (f"blk.{i}." for i in range(LAYERS)):
        norm(block + "attn_norm")
        norm(block + "ffn_norm")
        for name, (n_rows, n_cols) in SHAPES.items():
            codes = rng.integers(0, 3, (n_rows, n_cols), dtype=np.uint8)
            if n_cols == HIDDEN and name != "attn_output":  # as training leaves those columns
                for column in OUTLIERS:
                    codes[rng.random(n_rows) < 0.85, column] = 1
            scales = rng.lognormal(-3, 0.5, (n_rows, n_cols // GROUP)).astype("<f2")
            dense = np.repeat(scales.astype(np.float32), GROUP, 1) * (codes.astype(np.float32) - 1)
            add(block + name, dense, "Q2_0_G64", pack("Q2_0_G64", codes, scales))
    path = tmp_path_factory.mktemp("llama") / "m.gguf"
    numbers = {
        "context_length": 128, "embedding_length": HIDDEN, "block_count": LAYERS,
        "feed_forward_length": FFN, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS, "attention.layer_norm_rms_epsilon": EPS,
        "rope.freq_base": THETA, "rope.dimension_count": HEAD_DIM, "vocab_size": VOCAB,
    }  # fmt: skip
    metadata = {f"llama.{key}": value for key, value in numbers.items()}
    gguf.write(path, {"general.architecture": "llama"} | metadata, tensors)
    return path, values


def forward(values, ids, bits=None):
    """Logits (n, vocab) in float64; bits: to which the inputs of linear layers are rounded."""
    n = len(ids)

    def linear(x, name):
        if bits:
            codes, scales = grouped_reference.quantize(x.astype(np.float32), bits)
            group = grouped_reference.COLUMNS[bits]
            x = codes * np.repeat(scales, group, 1)[:, : x.shape[1]].astype(np.float64)
        return x @ values[name].T

    hidden = values["token_embd"][ids]
    for block in (f"blk.{i}." for i in range(LAYERS)):
        x = reference.rms_norm(hidden, values[block + "attn_norm"], EPS)
        q, k, v = (linear(x, f"{block}attn_{c}").reshape(n, -1, HEAD_DIM) for c in "qkv")
        q, k = (reference.rope(y, range(n), THETA, interleaved=True) for y in (q, k))
        o = [reference.attention(q[t], k[: t + 1], v[: t + 1]) for t in range(n)]
        hidden = hidden + linear(np.reshape(o, (n, -1)), block + "attn_output")
        x = reference.rms_norm(hidden, values[block + "ffn_norm"], EPS)
        gate, up = linear(x, block + "ffn_gate"), linear(x, block + "ffn_up")
        hidden = hidden + linear(reference.silu(gate) * up, block + "ffn_down")
    return reference.rms_norm(hidden, values["output_norm"], EPS) @ values["token_embd"].T


def error(found, expected):
    """Relative RMS."""
    return np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())


@pytest.fixture(scope="module")
def expected(model):
    """(token ids, logits of the pass without rounding)"""
    ids = np.random.default_rng(8).integers(0, VOCAB, 60)
    return ids, forward(model[1], ids)


@pytest.mark.parametrize(("activations", "bits"), [(None, 16), ("int16", 16), ("int8", 8)])
def test_logits(model, expected, activations, bits):
    """Within 2e-3 with 16 bits; with 8 no more than that rounding costs in NumPy, and half as much
    again, as roundings that fall the other way go through the layers."""
    path, values = model
    ids, exact = expected
    with bitnet.load(path, threads=1, kv_dtype="f32", activations=activations) as loaded:
        found = loaded.logits(ids.tolist())
        with loaded.session() as session:  # the same in parts
            for part in np.split(ids, [1, 2, 40]):
                last = session.feed(part.tolist()).copy()
    assert (last == found[-1]).all()
    cost = error(forward(values, ids, bits), exact)
    assert cost / 1.5 < error(found, exact) < 1.5 * cost
    assert error(found, exact) < 2e-3 if bits == 16 else error(found, exact) > 1e-2


def test_the_scales_of_other_groups_are_far_off(model, expected):
    """What the bounds are against: one group's scale in the place of its neighbour's."""
    _, values = model
    ids, exact = expected
    moved = values | {"blk.0.attn_q": np.roll(values["blk.0.attn_q"], GROUP, axis=1)}
    assert error(forward(moved, ids), exact) > 0.1
