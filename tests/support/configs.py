"""ModelConfigs of the two kinds of file, with changes."""

import copy

from support.small_files import HF_CONFIG

from bitnet.models.config import ModelConfig

PATH = "somewhere/config.json"
# what the official GGUF of bitnet-b1.58-2B-4T says, tokens aside
GGUF_2B = {
    "general.architecture": "bitnet-b1.58", "bitnet-b1.58.vocab_size": 128256,
    "bitnet-b1.58.context_length": 4096, "bitnet-b1.58.embedding_length": 2560,
    "bitnet-b1.58.block_count": 30, "bitnet-b1.58.feed_forward_length": 6912,
    "bitnet-b1.58.rope.dimension_count": 128, "bitnet-b1.58.attention.head_count": 20,
    "bitnet-b1.58.attention.head_count_kv": 5,
    "bitnet-b1.58.attention.layer_norm_rms_epsilon": 1e-5, "bitnet-b1.58.rope.freq_base": 500000.0,
    "tokenizer.ggml.bos_token_id": 128000, "tokenizer.ggml.eos_token_id": 128001,
}  # fmt: skip


def from_hf(generation=None, has_lm_head=False, tensors=(), **changes):
    config = copy.deepcopy(HF_CONFIG) | changes
    tensors = {*tensors, *["lm_head.weight"] * has_lm_head}
    return ModelConfig.from_hf(config, generation or {}, PATH, tensors)


def from_gguf(arch="bitnet-b1.58", n_embeddings=128256, has_lm_head=False, tensors=(), **changes):
    metadata = {key.replace("bitnet-b1.58", arch): value for key, value in GGUF_2B.items()}
    metadata["general.architecture"] = arch
    for key, value in changes.items():
        key = key.replace("__", ".")
        whole = key.startswith(("tokenizer.", "general."))
        metadata[key if whole else f"{arch}.{key}"] = value
    tensors = {*tensors, *["output.weight"] * has_lm_head}
    return ModelConfig.from_gguf(metadata, "model.gguf", n_embeddings, tensors)
