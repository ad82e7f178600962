"""Damage in what one tensor type or one family of models has: each case ends in a FormatError.

Every case is a tiny valid model of small_models.py with one thing changed; see test_malformed.py
for what all files have.
"""

import struct

import numpy as np
import pytest
from fuzz.run import replay
from support import small_models as models
from support.refusals import refused
from support.small_files import ARRAY, F32, STRING, U32, numbers, strings, text

from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError

WIDE = models.Shape(hidden=256, heads=1, head_dim=2, vocab=2)
GATE = "blk.0.ffn_gate.weight"  # (32, 256)
TERNARY = (
    "I2_S", "TQ1_0", "TQ2_0", "Q2_0_G64", "Q2_0_G128", "PQ2_0", "PTQ1_0", "IQ1_BN", "IQ2_BN",
    "IQ2_BN_R4",
)  # fmt: skip
BAD_SCALES = (0.0, -0.5, float("nan"), float("inf"), float("-inf"))


def saved(tmp_path, model):
    path = tmp_path / "model.gguf"
    path.write_bytes(model.bytes())
    return path


# ternary types ------------------------------------------------------------------------------------


def with_gate(type_name, shape=WIDE):
    """Of BitNet, whose rows have one scale, whatever the type could hold."""
    return models.gguf_model("bitnet-b1.58", shape, {"ffn_gate": type_name}, norms="F16")


def scale_places(type_name, n_rows=32, n_cols=256):
    """[(at, struct code)] of every scale of a tensor, in the order of the rows."""
    if type_name == "I2_S":
        return [(n_rows * n_cols // 4, "<f")]
    if type_name in models.BLOCKS:
        n_codes, n_bytes, (at,) = models.BLOCKS[type_name]
        return [(at + i * n_bytes, "<e") for i in range(n_rows * n_cols // n_codes)]
    if type_name == "IQ1_BN":
        return [(i * (2 + 13 * n_cols // 64), "<e") for i in range(n_rows)]
    together = 4 if type_name == "IQ2_BN_R4" else 1
    row = together * (4 + n_cols // 4)
    return [(i // together * row + i % together * 4, "<f") for i in range(n_rows)]


def set_scale(model, type_name, i, value):
    at, code = scale_places(type_name)[i]
    row = model.tensor(GATE)
    new = struct.pack(code, value)
    row[3] = row[3][:at] + new + row[3][at + len(new) :]


@pytest.mark.parametrize("i", [0, -1])
@pytest.mark.parametrize("value", BAD_SCALES)
@pytest.mark.parametrize("type_name", TERNARY)
def test_a_scale_that_is_none(tmp_path, type_name, value, i):
    model = with_gate(type_name)
    set_scale(model, type_name, i, value)
    refused(saved(tmp_path, model), rf"ffn_gate\.weight.*scale:? {value}")


@pytest.mark.parametrize("type_name", [name for name in TERNARY if name in models.BLOCKS])
def test_scales_that_differ_within_a_row(tmp_path, type_name):
    model = with_gate(type_name)
    n_blocks = 256 // models.BLOCKS[type_name][0]
    set_scale(model, type_name, 5 * n_blocks, 0.75)
    path = saved(tmp_path, model)
    if n_blocks == 1:  # then the whole row has another scale
        linear = open_checkpoint(path).ternary["layers.0.mlp.gate_proj"]
        assert linear.scales()[:, 0].tolist() == [0.5] * 5 + [0.75] + [0.5] * 26
    else:
        refused(path, r"group scales.* 0\.5 and 0\.75 in row 5")


@pytest.mark.parametrize("type_name", ["IQ1_BN", "IQ2_BN", "IQ2_BN_R4"])
def test_scales_of_rows_may_differ(tmp_path, type_name):
    model = with_gate(type_name)
    set_scale(model, type_name, 6, 0.75)
    linear = open_checkpoint(saved(tmp_path, model)).ternary["layers.0.mlp.gate_proj"]
    assert linear.scales()[:, 0].tolist() == [0.5] * 6 + [0.75] + [0.5] * 25


# a byte with a code 3; a byte that is no five (or four) base-3 digits
ILLEGAL = {
    "I2_S": (0xC0, 0), "TQ1_0": (1, 0), "TQ2_0": (0x03, 1), "Q2_0_G64": (0x30, 2),
    "Q2_0_G128": (0x0C, 33), "IQ1_BN": (237, 2), "IQ2_BN": (0xFF, -1), "IQ2_BN_R4": (0x03, 16),
    "PQ2_0": (0x0C, 33), "PTQ1_0": (1, 0),
}  # fmt: skip


@pytest.mark.parametrize("type_name", TERNARY)
def test_a_code_that_is_no_weight(tmp_path, type_name):
    model = with_gate(type_name)
    byte, at = ILLEGAL[type_name]
    row = model.tensor(GATE)
    data = bytearray(row[3])
    data[at] = byte
    row[3] = bytes(data)
    refused(saved(tmp_path, model), r"ffn_gate\.weight.*code.* 3")


def test_the_fifth_digit_of_four(tmp_path):
    model = with_gate("TQ1_0")
    row = model.tensor(GATE)
    row[3] = row[3][:48] + bytes([models.TRITS[1]]) + row[3][49:]
    refused(saved(tmp_path, model), r"ffn_gate\.weight.*no encoder writes")


@pytest.mark.parametrize("type_name", TERNARY)
@pytest.mark.parametrize(
    ("ne", "pattern"),
    [
        ([192 + 32, 33], "multiple of"),  # part of a block
        ([2**40, 2**21], r"end: \d{18}"),
        ([2**61, 2], "product below 2"),
        ([256, 0], "at least 1"),
    ],
)
def test_sizes_that_cannot_be(tmp_path, type_name, ne, pattern):
    model = with_gate(type_name)
    model.tensor(GATE)[1] = ne
    refused(saved(tmp_path, model), pattern)


@pytest.mark.parametrize("n_rows", [3, 6, 33])
def test_rows_that_are_no_groups_of_four(tmp_path, n_rows):
    model = with_gate("IQ2_BN_R4")
    model.tensor(GATE)[1] = [256, n_rows]
    refused(saved(tmp_path, model), r"ffn_gate\.weight ne: .*multiple of 4 rows")


def test_i2_s_of_four_rows_needs_them(tmp_path):
    model = models.gguf_model("llama", models.Shape(hidden=128, heads=1, head_dim=2, vocab=2))
    path = saved(tmp_path, model)  # q has 2 rows
    linear = open_checkpoint(path, layout="4row").ternary["layers.0.self_attn.q_proj"]
    with pytest.raises(FormatError, match=r"q\.weight: .*multiple of 4 rows"):
        linear.read()


def test_a_q2_0_tensor_cut_short(tmp_path):
    model = with_gate("Q2_0_G64")
    row = model.tensor(GATE)
    row[3] = row[3][: len(row[3]) // 2]
    refused(saved(tmp_path, model), r"gate\.weight room: 1152 bytes \(2304 .* exactly 2176")


def test_both_kinds_of_q2_0_in_one_file(tmp_path):
    kinds = {"ffn_gate": "Q2_0_G64", "ffn_up": "Q2_0_G128"}
    path = saved(tmp_path, models.gguf_model("llama", WIDE, kinds))
    refused(path, "ffn_gate.*groups of 64, and .*ffn_up.* groups of 128 .*PQ2_0")


UNREAD = {
    10: "Q2_K", 37: "I8_S", 38: "TL1 of bitnet.cpp", 39: "TL2 of bitnet.cpp, or MXFP4",
    40: "NVFP4", 41: "Q1_0", 144: "unknown", 200: "unknown",
}  # fmt: skip


@pytest.mark.parametrize("type_id", UNREAD)
def test_what_is_not_read_is_named_with_the_way_out(tmp_path, type_id):
    model = with_gate("I2_S")
    model.tensor(GATE)[2] = type_id
    instead = "PrismML's llama.cpp" if type_id in (142, 143) else "`bitnet convert`"
    refused(saved(tmp_path, model), rf"gate.weight type: {type_id} \({UNREAD[type_id]}.*{instead}")


@pytest.mark.parametrize("type_name", ["F16", "Q4_0", "Q8_0", "Q6_K", "BF16"])
def test_a_linear_layer_of_floats(tmp_path, type_name):
    refused(saved(tmp_path, with_gate(type_name)), rf"ffn_gate\.weight type: {type_name} \(one of")


# embedding, head, norms ---------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", ["I2_S", "TQ2_0", "IQ2_BN"])
@pytest.mark.parametrize("which", ["rows", "head"])
def test_ternary_rows_are_no_embedding(tmp_path, which, type_name):
    model = models.gguf_model("bitnet", WIDE, **{which: type_name})
    name = "token_embd" if which == "rows" else "output"
    refused(saved(tmp_path, model), rf"{name}\.weight (ne|type)")


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q6_K", "I2_S"])
def test_norms_are_floats(tmp_path, type_name):
    model = models.gguf_model("llama", WIDE)
    norm = model.tensor("output_norm.weight")
    data = models.tensor_bytes(type_name, 1, 256, np.random.default_rng(0))
    norm[2:4] = models.TYPE_IDS[type_name], data
    refused(saved(tmp_path, model), rf"output_norm\.weight type: {type_name}")


@pytest.mark.parametrize("type_name", [name for name in models.BLOCKS if name not in TERNARY])
def test_rows_that_cut_a_block(tmp_path, type_name):
    model = models.gguf_model("llama", models.Shape(hidden=48, heads=1, head_dim=8))
    embedding = model.tensor("token_embd.weight")
    embedding[2] = models.TYPE_IDS[type_name]
    refused(saved(tmp_path, model), rf"token_embd\.weight ne: .*{type_name} needs a multiple of")


# families in GGUF ---------------------------------------------------------------------------------


def whole(name, value):
    return lambda m, arch: m.set(f"{arch}.{name}", U32, struct.pack("<I", value))


def real(name, value):
    return lambda m, arch: m.set(f"{arch}.{name}", F32, struct.pack("<f", value))


def entry(name, type_id, payload):
    return lambda m, arch: m.set(f"{arch}.{name}", type_id, payload)


def plain(name, type_id, payload):
    """A key that does not begin with the architecture."""
    return lambda m, arch: m.set(name, type_id, payload)


NUMBERS = numbers(4, "I", [1, 2])


def absent(name):
    return lambda m, arch: m.remove(f"{arch}.{name}")


def without(name):
    return lambda m, arch: m.tensors.remove(m.tensor(name))


def floats(name, n):
    """A tensor of n floats in this one's place, or a new one."""

    def damage(m, arch):
        m.tensors = [tensor for tensor in m.tensors if tensor[0] != name]
        m.tensors.append([name, [n], 0, np.ones(n, np.float32).tobytes(), None])

    return damage


FAMILY_CASES = {
    "llama": {
        "key_length odd": (whole("attention.key_length", 7), "length: |count: "),
        "key_length 0": (whole("attention.key_length", 0), "key_length: 0"),
        "key_length 2^31": (whole("attention.key_length", 2**31), "key_length: 2147483648"),
        "key_length absent": (absent("attention.key_length"), "value_length: 8"),
        "value_length of another": (whole("attention.value_length", 16), "value_length: 16"),
        "rope of a part": (whole("rope.dimension_count", 4), "dimension_count: 4"),
        "kv heads in a list": (
            entry("attention.head_count_kv", ARRAY, numbers(4, "I", [1])),
            "head_count_kv: ",
        ),
        **{
            f"{name} a list": (entry(name, ARRAY, NUMBERS), f"{name}: ")
            for name in ("block_count", "attention.value_length", "rope.dimension_count",
                         "rope.freq_base", "rope.scaling.type", "hidden_activation")
        },
        **{
            f"{name} a list": (plain(f"tokenizer.{name}", ARRAY, NUMBERS), f"{name}: ")
            for name in ("ggml.model", "ggml.pre", "ggml.tokens", "ggml.add_bos_token",
                         "chat_template")
        },
        **{
            f"{name} a number": (plain(f"tokenizer.{name}", F32, bytes(4)), f"{name}: ")
            for name in ("ggml.model", "ggml.pre", "ggml.tokens", "ggml.merges", "ggml.token_type",
                         "ggml.bos_token_id", "chat_template")
        },
        "a merge of three": (plain("tokenizer.ggml.merges", ARRAY, strings(["a b c"])), "merges"),
        "a merge of one": (plain("tokenizer.ggml.merges", ARRAY, strings(["a"])), "merges"),
        "a merge of strangers": (plain("tokenizer.ggml.merges", ARRAY, strings(["x y"])), "merges"),
        "a merge that is no token": (
            plain("tokenizer.ggml.merges", ARRAY, strings(["b c"])), "merges",
        ),
        "an unknown pre-tokenizer": (plain("tokenizer.ggml.pre", STRING, text("x")), "pre: x"),
        "an unknown tokenizer": (plain("tokenizer.ggml.model", STRING, text("x")), "model: x"),
        "more heads": (whole("attention.head_count", 4), r"attn_q\.weight shape"),
        "wider": (whole("embedding_length", 64), r"token_embd\.weight shape"),
        "YaRN of no factor": (
            entry("rope.scaling.type", STRING, text("yarn")), "scaling.factor: missing",
        ),
        "scaling of 0": (
            lambda m, arch: (entry("rope.scaling.type", STRING, text("linear"))(m, arch),
                             real("rope.scaling.factor", 0.0)(m, arch)),
            r"scaling\.factor: 0\.0",
        ),
        "rotated weights": (
            plain("prism.hadamard.version", U32, struct.pack("<I", 1)),
            r"prism\.hadamard\.version: 1",
        ),
        "RoPE of base 0": (real("rope.freq_base", 0.0), "freq_base: 0.0"),
        "RoPE of base NaN": (real("rope.freq_base", float("nan")), "freq_base: nan"),
        "act unknown": (entry("hidden_activation", STRING, text("tanh")), "activation: tanh"),
        "act a number": (whole("hidden_activation", 1), "activation: 1"),
        "a sub norm": (floats("blk.0.attn_sub_norm.weight", 16), "sub_norm.weight: unexpected"),
        "a scale of two": (floats("blk.0.attn_q.scale", 2), r"attn_q\.scale shape"),
        "a head of other rows": (floats("output.weight", 32), r"output\.weight shape"),
    },
    "bitnet": {
        "no sub norm": (without("blk.0.ffn_sub_norm.weight"), "ffn_sub_norm.weight: missing"),
        "a short sub norm": (floats("blk.0.attn_sub_norm.weight", 15), "sub_norm.weight shape"),
        "act gelu": (entry("hidden_activation", STRING, text("gelu")), "activation: gelu"),
    },
    "qwen3": {
        "no pooling": (absent("pooling_type"), "pooling_type: missing"),
        **{f"pooling {n}": (whole("pooling_type", n), "pooling_type: ") for n in (0, 1, 2, 4)},
        "pooling as text": (entry("pooling_type", STRING, text("last")), "pooling_type: last"),
        "pooling in a list": (
            entry("pooling_type", ARRAY, numbers(4, "I", [3])), "pooling_type: ",
        ),
        "no norm of q": (without("blk.0.attn_q_norm.weight"), "attn_q_norm.weight: missing"),
        "a norm of q, not of heads": (floats("blk.0.attn_q_norm.weight", 16), "q_norm.*shape"),
        "no norm before v": (without("blk.0.attn_v_norm_in.weight"), "v_norm_in.weight: missing"),
        "a norm as wide as the output": (
            floats("blk.0.attn_k_norm_in.weight", 8), "k_norm_in.weight shape",
        ),
        "a norm of no input": (floats("blk.0.ffn_down_norm_in.weight", 33), "down_norm_in.*shape"),
        "a norm of NaN": (
            lambda m, arch: m.tensor("blk.0.ffn_up_norm_in.weight").__setitem__(
                3, struct.pack("<f", float("nan")) * 32),
            "up_norm_in.weight: NaN",
        ),
    },
    "gemma3": {
        "no pooling": (absent("pooling_type"), "pooling_type: missing"),
        "window -1": (
            entry("attention.sliding_window", 5, struct.pack("<i", -1)), "sliding_window: -1",
        ),
        "window 2^31": (whole("attention.sliding_window", 2**31), "sliding_window: 2147483648"),
        "window as float": (real("attention.sliding_window", 4.0), "sliding_window: 4.0"),
        "pattern of two": (
            entry("attention.sliding_window_pattern", ARRAY, numbers(7, "?", [True, False])),
            "sliding_window_pattern: 2|sliding_layers: 2",
        ),
        "pattern a number": (
            whole("attention.sliding_window_pattern", 0), "sliding_window_pattern: 0",
        ),
        "pattern a real": (
            real("attention.sliding_window_pattern", 6.0), "sliding_window_pattern: 6.0",
        ),
        "pattern of text": (
            entry("attention.sliding_window_pattern", ARRAY, strings(["full"])), "window_pattern",
        ),
        "local RoPE of base 0": (real("rope.freq_base_swa", 0.0), "freq_base_swa: 0.0"),
        "no norm behind": (without("blk.0.post_ffw_norm.weight"), "post_ffw_norm.weight: missing"),
        "act silu": (entry("hidden_activation", STRING, text("silu")), "activation: silu"),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "name"), [(arch, name) for arch, cases in FAMILY_CASES.items() for name in cases]
)
def test_gguf_family(tmp_path, arch, name):
    damage, pattern = FAMILY_CASES[arch][name]
    model = models.gguf_model(arch)
    damage(model, arch)
    refused(saved(tmp_path, model), pattern)


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "-" * 20_000 + "1 }}",
        "{% if a %}" + "{% elif a %}" * 8_000 + "{% endif %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 999999999 }}",
    ],
    ids=["signs", "branches", "loops", "long text"],
)
def test_a_chat_template_that_exhausts_the_stack_or_the_memory(tmp_path, template):
    model = models.gguf_model("llama")
    model.set("tokenizer.chat_template", STRING, text(template))
    saved(tmp_path, model)
    assert replay(tmp_path, ["gguf model"]) == []  # in a process of its own: some end it
