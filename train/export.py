"""Write a checkpoint as a GGUF of ternary I2_S tensors, laid out as bitnet-b1.58-2B-4T's.

    python export.py --work DIR --out model.gguf

The codes and the scale are those of the training forward pass; only the embedding is rounded,
to F16.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from data import BEGIN, END, TURN
from model import Config, Model, quantize_weight

from bitnet.formats import gguf, ternary_layouts

ARCH = "bitnet-b1.58"
CHAT_TEMPLATE = (  # the one of bitnet-b1.58-2B-4T
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
DESCRIPTION = (
    "A small ternary model: definitions from WordNet 3.0 (Copyright 2006 by Princeton University, "
    "all rights reserved; the licence is in MODEL_CARD.md) and public-domain prose"
)
TENSORS = {
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "attn_sub_norm": "attn_sub_norm",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "ffn_sub_norm": "ffn_sub_norm",
    "down_proj": "ffn_down",
}


def load_checkpoint(path):
    saved = torch.load(path, weights_only=True, map_location="cpu")
    model = Model(Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    return model, saved


def config_metadata(config):
    return {
        f"{ARCH}.vocab_size": config.vocab_size,
        f"{ARCH}.context_length": config.max_position_embeddings,
        f"{ARCH}.embedding_length": config.hidden_size,
        f"{ARCH}.block_count": config.num_hidden_layers,
        f"{ARCH}.feed_forward_length": config.intermediate_size,
        f"{ARCH}.rope.dimension_count": config.head_dim,
        f"{ARCH}.attention.head_count": config.num_attention_heads,
        f"{ARCH}.attention.head_count_kv": config.num_key_value_heads,
        f"{ARCH}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{ARCH}.rope.freq_base": config.rope_theta,
        f"{ARCH}.hidden_activation": "relu2",
    }


def tokenizer_metadata(path):
    tokenizer = json.loads(Path(path).read_text())
    ids = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.get)
    special = {t["content"] for t in tokenizer["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.array([3 if t in special else 1 for t in tokens], np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": ids[BEGIN],
        "tokenizer.ggml.eos_token_id": ids[END],
        "tokenizer.ggml.eot_token_id": ids[TURN],
        "tokenizer.ggml.padding_token_id": ids[END],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def ternary(name, weight):
    """I2_S: the packed codes, the scale as f32, 28 zero bytes."""
    codes, scale = quantize_weight(weight)
    packed = ternary_layouts.pack_i2_s((codes + 1).to(torch.uint8).numpy())
    tail = np.zeros(8, np.float32)
    tail[0] = scale.item()
    return name, tuple(weight.shape), "I2_S", packed.tobytes() + tail.tobytes()


def norm(name, weight):
    return name, tuple(weight.shape), "F32", weight.numpy()


@torch.no_grad()
def tensors(model):
    embedding = model.embed_tokens.weight.detach()
    yield "token_embd.weight", tuple(embedding.shape), "F16", embedding.half().numpy()
    for i, layer in enumerate(model.layers):
        for source, target in TENSORS.items():
            name, part = f"blk.{i}.{target}.weight", getattr(layer, source)
            yield ternary(name, part) if source.endswith("_proj") else norm(name, part.weight)
    yield norm("output_norm.weight", model.norm.weight)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="ternary", help="of the run, as train.py was told")
    args = parser.parse_args()
    model, saved = load_checkpoint(args.work / f"{args.name}.pt")
    metadata = {
        "general.architecture": ARCH,
        "general.name": "bitnet-demo",
        "general.license": "MIT; of what it says of nouns, WordNet 3.0",
        "general.description": DESCRIPTION,
        "general.file_type": 40,
        "general.quantization_version": 2,
        # read by llama.cpp and by the engine: greedy prose of so small a model turns in circles
        "general.sampling.temp": 0.5,
        "general.sampling.top_p": 0.9,
        **config_metadata(model.config),
        **tokenizer_metadata(args.work / "tokenizer.json"),
    }
    gguf.write(args.out, metadata, list(tensors(model.requires_grad_(False))))
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, step {saved['step']}")


if __name__ == "__main__":
    main()
