"""ModelConfig: what the published files say is understood, everything else is refused by name."""

import logging

import numpy as np
import pytest
from support.configs import GGUF_2B, PATH, from_gguf, from_hf
from support.small_files import HF_CONFIG

from bitnet.errors import FormatError
from bitnet.models.config import ModelConfig, hf_linears


def test_the_official_gguf():
    config = from_gguf()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (
        2560,
        6912,
        30,
    )
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (20, 5, 128)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 5e5)
    assert config.vocab_size == 128256 and config.max_position_embeddings == 4096
    assert config.tie_word_embeddings and config.sub_norms and not config.rope_interleaved
    assert config.hidden_act == "relu2" and not config.do_sample


def test_a_gguf_may_bring_its_settings_for_sampling():
    config = from_gguf(general__sampling__temp=0.75, general__sampling__top_k=40)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.75, 40, 1)
    with pytest.raises(FormatError, match=r"general\.sampling\.temp: nan"):
        from_gguf(general__sampling__temp=float("nan"))


def test_end_tokens_of_a_gguf_include_the_end_of_turn():
    tokens = ["a"] * 128256
    tokens[128009] = "<|eot_id|>"
    assert from_gguf(tokenizer__ggml__tokens=tokens).eos_token_ids == (128001, 128009)
    config = from_gguf(tokenizer__ggml__tokens=tokens, tokenizer__ggml__eot_token_id=128009)
    assert config.eos_token_ids == (128001, 128009)
    assert from_gguf().eos_token_ids == (128001,)


@pytest.mark.parametrize(
    ("arch", "stated", "hidden_act"),
    [
        ("bitnet-b1.58", None, "relu2"),
        ("bitnet-25", None, "relu2"),
        ("bitnet", None, "relu2"),  # by the shape of 2B-4T
        ("bitnet", "silu", "silu"),
        ("bitnet-b1.58", "silu", "silu"),
        ("bitnet", "relu2", "relu2"),
    ],
)
def test_activation(arch, stated, hidden_act):
    changes = {"hidden_activation": stated} if stated else {}
    assert from_gguf(arch, **changes).hidden_act == hidden_act


def test_activation_of_other_bitnet_shapes_is_silu_and_logged(caplog):
    with caplog.at_level(logging.INFO, "bitnet"):
        assert from_gguf("bitnet", block_count=26).hidden_act == "silu"
    assert "bitnet.hidden_activation" in caplog.text and "silu" in caplog.text


@pytest.mark.parametrize("eps", [1e-12, 0.1])
def test_a_bound_in_a_float_of_32_bits_is_the_bound(eps):
    stored = float(np.float32(eps))
    assert stored != eps
    assert from_gguf(attention__layer_norm_rms_epsilon=stored).rms_norm_eps == stored
    assert from_hf(rms_norm_eps=eps).rms_norm_eps == eps
    beyond = float(np.nextafter(np.float32(eps), np.float32(0 if eps < 0.01 else 1)))
    with pytest.raises(FormatError, match="epsilon"):
        from_gguf(attention__layer_norm_rms_epsilon=beyond)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"attention__head_count": 0}, "head_count"),
        ({"attention__head_count": 20.0}, "head_count"),
        ({"attention__head_count": True}, "head_count"),
        ({"feed_forward_length": 262144}, "feed_forward_length"),
        (
            {
                "attention__head_count": 1024,
                "attention__head_count_kv": 1024,
                "attention__key_length": 512,
                "attention__value_length": 512,
                "rope__dimension_count": 512,
            },
            r"o_proj: 524288 \(at most 131072",
        ),
        ({"attention__head_count_kv": 3}, "num_key_value_heads"),
        ({"block_count": 10**9}, "block_count"),
        ({"context_length": 2**60}, "context_length"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "epsilon"),
        ({"attention__layer_norm_rms_epsilon": 0.0}, "epsilon"),
        ({"attention__layer_norm_rms_epsilon": -1e-5}, "epsilon"),
        ({"rope__freq_base": float("inf")}, "freq_base"),
        ({"rope__dimension_count": 256}, "dimension_count"),
        ({"attention__value_length": 64}, "value_length"),
        ({"attention__key_length": 127, "attention__value_length": 127}, "dimension_count"),
        ({"rope__scaling__type": "spiral"}, "rope.scaling.type"),
        ({"rope__scaling__type": "yarn"}, "rope.scaling.factor"),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, "rope.scaling.factor"),
        ({"hidden_activation": "gelu"}, "hidden_activation"),
        ({"embedding_length": None}, "embedding_length"),
        ({"embedding_length": [2560]}, "embedding_length"),
        ({"tokenizer__ggml__eos_token_id": 128256}, "eos_token_id"),
        ({"tokenizer__ggml__bos_token_id": -1}, "bos_token_id"),
    ],
)
def test_gguf_fields_are_checked(changes, field):
    with pytest.raises(FormatError, match=field):
        from_gguf(**changes)


def test_odd_head_dim_is_refused():
    with pytest.raises(FormatError, match=r"head_dim: 127 \(even"):
        from_gguf(attention__key_length=127, attention__value_length=127, rope__dimension_count=127)


def test_linear_scaling_by_one_is_no_scaling():
    assert from_gguf(rope__scaling__type="linear", rope__scaling__factor=1.0).rope_theta == 5e5


def test_other_architectures_are_refused_by_name():
    metadata = GGUF_2B | {"general.architecture": "phi3"}
    with pytest.raises(FormatError) as caught:
        ModelConfig.from_gguf(metadata, "model.gguf", 128256, ())
    assert str(caught.value) == (
        "model.gguf: general.architecture: phi3 "
        "(this version supports bitnet-b1.58, bitnet-25, bitnet, llama, qwen3, qwen35, gemma3)"
    )
    supported = r"bitnet, llama, qwen3, qwen3_5_text, qwen3_5, gemma3_text"
    with pytest.raises(
        FormatError, match=rf"model_type: phi3 \(this version supports {supported}\)"
    ):
        from_hf(model_type="phi3")


def test_hf_with_its_generation_config():
    generation = {"eos_token_id": [14, 15], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    config = from_hf(generation)
    assert config.eos_token_ids == (14, 15) and config.bos_token_id == 13
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.6, 0, 0.9)
    assert config.head_dim == 32 and config.hidden_act == "relu2" and config.sub_norms


@pytest.mark.parametrize("has_lm_head", [True, False])
def test_tying_comes_from_the_file_or_from_the_tensors(has_lm_head):
    assert from_hf(tie_word_embeddings=None, has_lm_head=has_lm_head).tie_word_embeddings is not (
        has_lm_head
    )
    assert from_hf(tie_word_embeddings=True, has_lm_head=has_lm_head).tie_word_embeddings is True


def test_rope_theta_of_newer_files():
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    assert from_hf(rope_theta=None, rope_parameters=rope).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_key_value_heads": None}, "num_key_value_heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rope_scaling": {"type": "spiral", "factor": 2}}, "rope_type"),
        ({"rope_parameters": "yarn"}, "rope_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"eos_token_id": "14"}, "eos_token_id"),
        ({"eos_token_id": list(range(65))}, "eos_token_id"),
        ({"bos_token_id": 16}, "bos_token_id"),
    ],
)
def test_hf_fields_are_checked(changes, field):
    with pytest.raises(FormatError, match=field):
        from_hf(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "multiply"),
        ({"quantization_mode": None}, "multiply"),
        ({"quantization_mode": "online"}, "masters"),
        ({"linear_class": "bitlinear"}, "divide"),
        ({"linear_class": None}, "divide"),
        ({"modules_to_not_convert": ["lm_head"]}, "multiply"),
    ],
)
def test_linear_classes(changes, expected):
    quantization = HF_CONFIG["quantization_config"] | changes
    assert hf_linears(HF_CONFIG | {"quantization_config": quantization}, PATH, ()) == expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"quant_method": "gptq"}, "quant_method"),
        ({"linear_class": "other"}, "linear_class"),
        ({"linear_class": "bitlinear", "quantization_mode": "online"}, "linear_class"),
        ({"use_rms_norm": True}, "use_rms_norm"),
        ({"modules_to_not_convert": ["model.layers.0.mlp.up_proj"]}, "modules_to_not_convert"),
        ({"modules_to_not_convert": [[]]}, "modules_to_not_convert"),
    ],
)
def test_unknown_quantization_is_refused(changes, field):
    quantization = HF_CONFIG["quantization_config"] | changes
    with pytest.raises(FormatError, match=field):
        hf_linears(HF_CONFIG | {"quantization_config": quantization}, PATH, ())
    with pytest.raises(FormatError, match="quantization_config"):
        hf_linears(HF_CONFIG | {"quantization_config": None}, PATH, ())


def test_tensor_shapes_of_2b_4t_add_up_to_the_published_count():
    shapes = from_gguf().tensor_shapes()
    sizes = {name: shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in shapes.items()}
    assert sum(sizes.values()) == 2_412_820_480
    assert sum(n for name, n in sizes.items() if name.endswith("_proj")) == 2_084_044_800
    assert len(shapes) == 332 and "lm_head" not in shapes
    assert from_gguf(has_lm_head=True).tensor_shapes()["lm_head"] == (128256, 2560)
