"""bench/support/group_quality.py: its pass in NumPy is that of the models it writes."""

import numpy as np
import pytest
from support.benches import TEXT, bench
from support.paths import ROOT

import bitnet
from bitnet.formats import gguf
from bitnet.generation.perplexity import windows
from bitnet.generation.saved_logits import SavedLogits

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, LAYERS = 192, 128, 3, 1, 600, 2


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "support"))
    module = bench("group_quality")
    monkeypatch.setattr(module, "CONTEXT", 64)
    return module


def source(path, quality):
    """A GGUF as SmolLM2's is: Q4_1, Q8_0 and F32; its values come of any bytes."""
    rng, tensors = np.random.default_rng(3), []

    def add(name, n_rows, n_cols, type_name, fields):
        blocks = [
            np.full((n_rows * n_cols // 32, 1), value, "<f2").view(np.uint8) for value in fields
        ]
        n_codes = {"Q4_1": 16, "Q8_0": 32}[type_name]
        blocks.append(rng.integers(0, 256, (len(blocks[0]), n_codes), dtype=np.uint8))
        tensors.append((f"{name}.weight", (n_rows, n_cols), type_name, np.hstack(blocks)))

    def norm(name):
        data = rng.uniform(0.6, 1.4, HIDDEN).astype(np.float32)
        tensors.append((f"{name}.weight", (HIDDEN,), "F32", data))

    add("token_embd", VOCAB, HIDDEN, "Q8_0", (0.01,))
    norm("output_norm")
    kv = HIDDEN // HEADS * KV_HEADS
    for block in (f"blk.{i}." for i in range(LAYERS)):
        norm(block + "attn_norm")
        norm(block + "ffn_norm")
        for name, n_rows, n_cols in (
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", kv, HIDDEN), ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", FFN, HIDDEN), ("ffn_up", FFN, HIDDEN),
            ("ffn_down", HIDDEN, FFN),
        ):  # fmt: skip
            add(block + name, n_rows, n_cols, "Q4_1", (0.015, -0.11))
    shape = quality.synthetic.Shape(
        HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HIDDEN // HEADS, VOCAB, 128
    )
    known = quality.synthetic.metadata(shape, "llama") | {"tokenizer.ggml.add_bos_token": False}
    metadata = {k: v for k, v in known.items() if "key_length" not in k and "value_length" not in k}
    gguf.write(path, metadata, tensors)
    return path


def error(found, expected):
    """Relative RMS."""
    return np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())


@pytest.mark.parametrize("n_terms", [1, 3])
def test_a_model_in_ternary_terms(tmp_path, quality, n_terms):
    """The more terms, the nearer to its source it is; the pass knows no copies of channels."""
    path = tmp_path / "m.gguf"
    network, trained = quality.smollm(source(tmp_path / "source.gguf", quality), path, n_terms)
    ids = np.random.default_rng(4).integers(0, VOCAB, 40)
    expected = network.logits(ids)
    with bitnet.load(path, kv_dtype="f32") as model:
        assert model.config.hidden_size == n_terms * HIDDEN
        assert error(model.logits(ids.tolist()), expected) < 2e-3
    off = error(expected, trained.logits(ids))
    assert off > 0.3 if n_terms == 1 else off < 0.1
    assert 2 < np.median(network.peaks) < 6


def test_a_model_with_outliers(tmp_path, quality, monkeypatch):
    """Its pass, what is saved of it, and the figures, which are those of int8 and not of float."""
    monkeypatch.setattr(
        quality, "QWEN3", quality.synthetic.Shape(256, 256, 2, 4, 2, 64, VOCAB, 128)
    )
    path, base = tmp_path / "m.gguf", tmp_path / "m.logits"
    network = quality.qwen3_of_outliers(path)
    with bitnet.load(path, kv_dtype="f32", activations="int8") as model:
        ids = model.tokenizer.encode(TEXT.read_text("utf-8"))[:200]
        chosen = windows(len(ids), 64)
        rows = quality.reference_rows(network, ids, chosen, None)
        found = quality.model_rows(model, ids, chosen, None)
        line = quality.compared(ids, chosen, rows, found)
    assert max(network.peaks) > 8
    assert len(rows) == 3 and rows[0].shape == (31, VOCAB)
    quality.save(base, ids, rows)
    saved = list(SavedLogits(base).rows(2, is_reference=False))
    assert np.abs(saved - np.maximum(rows[2], rows[2].max(1, keepdims=True) - 16)).max() < 2e-4
    kl = float(line.split()[1])
    assert 1e-4 < kl < 1 and "of 93; perplexity" in line
    with bitnet.load(path, kv_dtype="f32") as model:
        assert error(model.logits(ids[:60]), network.logits(ids[:60])) < 2e-3
        found = quality.model_rows(model, ids, chosen, None)
        assert float(quality.compared(ids, chosen, rows, found).split()[1]) < kl / 1000
