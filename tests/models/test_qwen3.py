"""Qwen3, causal: its graph against NumPy in float64, and how its files are told from others."""

import json

import numpy as np
import pytest
from support import reference, small_models
from support.configs import from_gguf, from_hf
from support.small_files import safetensors

import bitnet
from bitnet.checkpoints.convert import convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError
from bitnet.formats import gguf
from bitnet.models.registry import ARCHITECTURES
from bitnet.models.rope_scaling import RopeScaling, default_attention_factor

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 128, 192, 4, 2, 64, 96, 2
EPS, THETA, CONTEXT, ORIGINAL, FACTOR = 1e-6, 1e4, 256, 64, 4.0
WIDTHS = {
    "hidden": HIDDEN, "ffn": FFN, "q": HEADS * HEAD_DIM, "kv": KV_HEADS * HEAD_DIM,
    "head": HEAD_DIM,
}  # fmt: skip
QWEN3 = ARCHITECTURES["qwen3"]


# a model and its files ----------------------------------------------------------------------------


def weights_of(tied, seed=11):
    """{name: float32 array}; of a linear layer (q, scale), W = scale * q."""
    rng = np.random.default_rng(seed)

    def norm(n):
        return rng.uniform(0.6, 1.4, n).astype(np.float16).astype(np.float32)

    def rows():
        return rng.standard_normal((VOCAB, HIDDEN)).astype(np.float16).astype(np.float32)

    found = {"embed_tokens": rows(), "norm": norm(HIDDEN)}
    if not tied:
        found["lm_head"] = rows()
    for i in range(LAYERS):
        found |= {f"layers.{i}.{n}": norm(WIDTHS[width]) for n, width in QWEN3.norms.items()}
        for name, (outputs, inputs) in QWEN3.linears.items():
            q = rng.integers(-1, 2, (WIDTHS[outputs], WIDTHS[inputs])).astype(np.int8)
            found[f"layers.{i}.{name}"] = q, np.float32(np.float16(0.11 + 0.02 * rng.random()))
    return found


def gguf_file(path, weights, yarn=False, **changes):
    """The model as a GGUF of type I2_S. changes: of its metadata, dots are __."""
    metadata = {
        "context_length": CONTEXT, "embedding_length": HIDDEN,
        "block_count": LAYERS, "feed_forward_length": FFN, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "attention.layer_norm_rms_epsilon": EPS,
        "rope.freq_base": THETA,
    }  # fmt: skip
    if yarn:
        metadata |= {"rope.scaling.type": "yarn", "rope.scaling.factor": FACTOR,
                     "rope.scaling.original_context_length": ORIGINAL}  # fmt: skip
    keys = {f"qwen3.{key}": value for key, value in metadata.items()} | {
        key.replace("__", "."): value for key, value in changes.items()
    }
    tensors = []
    for name, weight in weights.items():
        stem = f"{QWEN3.gguf_name(name)}.weight"
        if isinstance(weight, tuple):
            q, scale = weight
            tail = scale.tobytes() + bytes(28)
            data = reference.pack_i2_s(q.reshape(1, -1)).tobytes() + tail
            tensors.append((stem, q.shape, "I2_S", data))
        elif weight.ndim == 2:
            tensors.append((stem, weight.shape, "F16", weight.astype("<f2").tobytes()))
        else:
            tensors.append((stem, weight.shape, "F32", weight.tobytes()))
    gguf.write(path, {"general.architecture": "qwen3"} | keys, tensors)
    return path


def hf_config(tied, yarn, **changes):
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "hidden_act": "silu",
        "max_position_embeddings": CONTEXT, "rms_norm_eps": EPS, "rope_theta": THETA,
        "tie_word_embeddings": tied, "vocab_size": VOCAB, "attention_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": LAYERS,
    }  # fmt: skip
    if yarn:
        config["rope_scaling"] = {"rope_type": "yarn", "factor": FACTOR,
                                  "original_max_position_embeddings": ORIGINAL}  # fmt: skip
    return config | changes


def hf_folder(path, weights, yarn=False, **changes):
    """The model as a folder whose floats are scale * q. changes: of config.json."""
    tensors = {}
    for name, weight in weights.items():
        if isinstance(weight, tuple):
            weight = weight[0] * weight[1]
        stem = name if name == "lm_head" else f"model.{name}"
        tensors[f"{stem}.weight"] = "F16", weight.shape, weight.astype("<f2").tobytes()
    config = hf_config("lm_head" not in weights, yarn, **changes)
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors(tensors)}
    return small_models.write(path, files)


# the reference ------------------------------------------------------------------------------------


def frequencies(yarn):
    """(frequencies of the pairs, factor of cosines and sines), by the paper's formulas."""
    j = np.arange(HEAD_DIM // 2)
    plain = THETA ** (-2 * j / HEAD_DIM)
    if not yarn:
        return plain, 1.0

    def pair(n_turns):
        return HEAD_DIM * np.log(ORIGINAL / (n_turns * 2 * np.pi)) / (2 * np.log(THETA))

    low, high = max(np.floor(pair(32)), 0), min(np.ceil(pair(1)), HEAD_DIM - 1)
    stays = 1 - np.clip((j - low) / (high - low), 0, 1)
    return plain * (stays + (1 - stays) / FACTOR), 1 + 0.1 * np.log(FACTOR)


def rope(x, yarn):
    """x (n, heads, head_dim) at positions 0 to n - 1, pairs (j, j + head_dim / 2)."""
    turns, factor = frequencies(yarn)
    angle = np.arange(len(x))[:, None, None] * turns
    c, s = factor * np.cos(angle), factor * np.sin(angle)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def forward(weights, token_ids, yarn, head_norms=True):
    """Logits (n, vocab) in float64; activations are not rounded."""
    n = len(token_ids)

    def linear(x, name):
        q, scale = weights[name]
        return x @ q.T.astype(np.float64) * np.float64(scale)

    def norm(x, name):
        return reference.rms_norm(x, weights[name], EPS)

    def heads(x, layer, name):
        x = linear(x, f"{layer}self_attn.{name}_proj").reshape(n, -1, HEAD_DIM)
        if name == "v":
            return x
        return rope(norm(x, f"{layer}self_attn.{name}_norm") if head_norms else x, yarn)

    hidden = weights["embed_tokens"][token_ids].astype(np.float64)
    for i in range(LAYERS):
        p = f"layers.{i}."
        x = norm(hidden, p + "input_layernorm")
        q, k, v = (heads(x, p, name) for name in "qkv")
        o = [reference.attention(q[t], k[: t + 1], v[: t + 1]) for t in range(n)]
        hidden = hidden + linear(np.reshape(o, (n, -1)), p + "self_attn.o_proj")
        x = norm(hidden, p + "post_attention_layernorm")
        z = reference.silu(linear(x, p + "mlp.gate_proj")) * linear(x, p + "mlp.up_proj")
        hidden = hidden + linear(z, p + "mlp.down_proj")
    head = weights.get("lm_head", weights["embed_tokens"])
    return norm(hidden, "norm") @ head.T.astype(np.float64)


def error(found, expected):
    """Relative RMS."""
    return np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())


# the graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["gguf", "folder"])
@pytest.mark.parametrize(("tied", "yarn"), [(True, False), (False, False), (False, True)])
def test_logits(tmp_path, monkeypatch, container, tied, yarn):
    """Within what activations rounded to int8 cost, at most; a mistake in the graph costs more."""
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    weights = weights_of(tied)
    write = gguf_file if container == "gguf" else hf_folder
    path = write(tmp_path / ("m.gguf" if container == "gguf" else "m"), weights, yarn)
    ids = np.random.default_rng(5).integers(0, VOCAB, 200)
    expected = forward(weights, ids, yarn)
    with bitnet.load(path, threads=1, kv_dtype="f32") as model:
        found = model.logits(ids.tolist())
        with model.session() as session:  # the same in parts
            for part in np.split(ids, [1, 2, 130]):
                last = session.feed(part.tolist()).copy()
    assert (last == found[-1]).all()
    assert error(found, expected) < 0.08
    for other in (forward(weights, ids, not yarn), forward(weights, ids, yarn, head_norms=False)):
        assert error(other, expected) > 0.2


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_is_the_same_model(tmp_path, monkeypatch, tied):
    """Head norms, YaRN, tying and sampling go through a folder and a GGUF that are written."""
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    sampling = {"general__sampling__temp": 0.5, "general__sampling__top_k": 20}
    path = gguf_file(tmp_path / "m.gguf", weights_of(tied), yarn=True, **sampling)
    folder = convert(path, tmp_path / "folder").path
    again = convert(folder, tmp_path / "again.gguf").path
    written = json.loads((folder / "config.json").read_text())
    assert written["architectures"] == ["Qwen3ForCausalLM"] and written["model_type"] == "qwen3"
    assert written["rope_scaling"]["rope_type"] == "yarn"
    metadata = gguf.GGUFFile(again).metadata
    assert metadata["general.architecture"] == "qwen3" and "qwen3.pooling_type" not in metadata
    logits = []
    for source in (path, folder, again):
        config = open_checkpoint(source).config
        assert config.family == "qwen3" and config.tie_word_embeddings == tied
        assert (config.do_sample, config.temperature, config.top_k) == (True, 0.5, 20)
        with bitnet.load(source, threads=1) as model:
            logits.append(model.logits([1, 2, 3]))
    assert (logits[0] == logits[1]).all() and (logits[0] == logits[2]).all()


# the files ----------------------------------------------------------------------------------------

SMALL = {"embedding_length": 128, "feed_forward_length": 192, "block_count": 2,
         "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
         "rope.dimension_count": 64}  # fmt: skip


def qwen3_gguf(tensors=(), **changes):
    """The ModelConfig of the metadata of a GGUF with tensors of these names."""
    changes = {key.replace(".", "__"): value for key, value in SMALL.items()} | changes
    return from_gguf("qwen3", tensors=tensors, **changes)


def test_the_families_under_one_name():
    causal, embedding = "blk.0.attn_q_norm.weight", "blk.0.attn_q_norm_in.weight"
    config = qwen3_gguf([causal])
    assert config.arch is QWEN3 and config.pooling is None and config.head_dim == 64
    assert config.arch.rounds_by_group
    config = qwen3_gguf([causal, embedding], pooling_type=3)
    assert config.family == "qwen3_embedding" and config.pooling == "last"
    assert not config.arch.rounds_by_group
    norm = ["layers.0.self_attn.q_norm.weight", "layers.0.self_attn.q_proj.norm.weight"]
    folder = hf_config(True, False) | {"architectures": ["Qwen3Model"]}
    assert from_hf(tensors=norm, **folder).family == "qwen3_embedding"
    assert from_hf(tensors=[f"model.{norm[0]}"], **hf_config(True, False)).family == "qwen3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_type": 3}, r"qwen3\.pooling_type: last \(none; an embedding model needs"),
        ({"pooling_type": 4}, r"qwen3\.pooling_type: 4 "),
        (
            {"attention__sliding_window": 512},
            r"attention\.sliding_window: 512 \(0, or the context of 4096; sliding windows",
        ),
        ({"attention__value_length": 32}, r"value_length: 32 \(head_dim, 64"),
        ({"hidden_activation": "relu2"}, "hidden_activation: relu2"),
        ({"rope__scaling__type": "yarn"}, r"rope\.scaling\.factor: missing"),
    ],
)
def test_gguf_fields_are_checked(changes, message):
    with pytest.raises(FormatError, match=message):
        qwen3_gguf(**changes)


def test_a_window_over_the_whole_context_is_none():
    assert qwen3_gguf(attention__sliding_window=4096, pooling_type=0).sliding_window == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Qwen3Model"]}, r"architectures: .*Qwen3Model.*Qwen3ForCausalLM; an"),
        ({"architectures": "Qwen3ForCausalLM"}, "architectures"),
        (
            {"use_sliding_window": True},
            r"use_sliding_window: True \(false; sliding windows of this family",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: .*alone"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"attention_bias": True}, r"attention_bias: True \(false; biases"),
        ({"hidden_act": "gelu"}, "hidden_act: gelu"),
        ({"head_dim": 64.0}, r"head_dim: 64\.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "factor: 0"),
    ],
)
def test_fields_of_config_json_are_checked(changes, message):
    with pytest.raises(FormatError, match=message):
        from_hf(**hf_config(True, False, **changes))


def test_what_config_json_may_leave_out():
    config = from_hf(**hf_config(True, False, head_dim=None, architectures=None))
    assert config.head_dim == 128
    full = ["full_attention"] * LAYERS
    assert from_hf(**hf_config(True, False, layer_types=full)).sliding_layers == ()


def test_scaling_in_both_forms_of_config_json_and_in_a_gguf():
    """Bonsai-8B's: a context of 65,536, of which 16,384 were trained."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16384}
    expected = RopeScaling("yarn", 4.0, 16384, default_attention_factor(4.0))
    old = hf_config(True, False, rope_scaling=scaling, rope_theta=1e6)
    newer = hf_config(True, False, rope_parameters=scaling | {"rope_theta": 1e6}, rope_theta=None)
    for config in (from_hf(**old), from_hf(**newer)):
        assert config.rope_scaling == expected and config.rope_theta == 1e6
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 16384}
    keys = {f"rope__scaling__{key}": value for key, value in keys.items()}
    assert qwen3_gguf(**keys).rope_scaling == expected
    assert qwen3_gguf(rope__scaling__type="none", rope__scaling__factor=3.0).rope_scaling is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: None, r"blk\.1\.attn_k_norm\.weight: missing"),
        (lambda w: w[:32], r"blk\.1\.attn_k_norm\.weight shape: \(32,\) .*\(64,\)"),
        (lambda w: w * np.float32("nan"), r"attn_k_norm\.weight: NaN or infinite"),
    ],
)
def test_norms_of_heads_are_checked(tmp_path, change, message):
    weights, name = weights_of(True), "layers.1.self_attn.k_norm"
    weights[name] = change(weights[name])
    path = gguf_file(tmp_path / "m.gguf", {k: w for k, w in weights.items() if w is not None})
    with pytest.raises(FormatError, match=message):
        bitnet.load(path)


def test_a_head_of_another_length_than_its_rows_is_refused(tmp_path):
    lengths = {"qwen3__attention__key_length": 32, "qwen3__attention__value_length": 32}
    path = gguf_file(tmp_path / "m.gguf", weights_of(True), **lengths)
    with pytest.raises(FormatError, match=r"attn_(q|q_norm)\.weight shape"):
        open_checkpoint(path)


@pytest.mark.parametrize("listed", [VOCAB - 1, VOCAB - 3])
def test_both_end_tokens_whichever_is_listed_and_no_begin(tmp_path, listed):
    words = [*map(chr, range(33, 33 + VOCAB - 4)), "ab"]
    tokens = [*words, "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    keys = {
        "model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": ["a b"],
        "token_type": np.array([1] * len(words) + [3] * 3, np.int32), "bos_token_id": VOCAB - 3,
        "eos_token_id": listed,
    }  # fmt: skip
    keys = {f"tokenizer__ggml__{key}": value for key, value in keys.items()}
    path = gguf_file(tmp_path / "m.gguf", weights_of(True), **keys)
    with bitnet.load(path, threads=1) as model:
        assert set(model.tokenizer.eos_ids) == {VOCAB - 1, VOCAB - 3}
        assert model.tokenizer.encode("abc") == [tokens.index("ab"), tokens.index("c")]
