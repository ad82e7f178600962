"""Write an HF folder of bf16 master weights with the widths of bitnet-b1.58-2B-4T, random numbers.

`python bench/support/synthetic_hf.py FOLDER` takes a minute and 4.8 GB. With --memory it converts
the folder to FOLDER.gguf as well, and prints one JSON object: seconds, MB/s, and the most memory
that was anonymous at once, by /proc/self/status.

Llama-3-8B's widths, of two layers: --hidden 4096 --ffn 14336 --heads 32 --kv-heads 8 --layers 2
"""

import argparse
import json
from pathlib import Path

import numpy as np
from synthetic import CHUNK, N_SPECIAL, Shape, vocabulary

from bitnet.checkpoints.convert import convert
from bitnet.formats import safetensors

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(folder, shape, seed=0):
    """Write the folder, which must not exist. Shape and seed determine every byte."""
    folder = Path(folder)
    folder.mkdir()
    rng = np.random.Generator(np.random.SFC64(seed))
    safetensors.write(folder / safetensors.SINGLE, {"format": "pt"}, list(tensors(shape, rng)))
    for name, value in (("config", config(shape)), ("tokenizer", tokenizer(shape.vocab))):
        (folder / f"{name}.json").write_text(json.dumps(value))


def config(shape):
    bos = shape.vocab - N_SPECIAL
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "bos_token_id": bos,
        "eos_token_id": bos + 1,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        },
    }


def tokenizer(size):
    """The object of a tokenizer.json: byte-level BPE as llama-3's, which puts bos in front."""
    tokens, merges = vocabulary(size)
    first = size - N_SPECIAL
    bos = tokens[first]
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA_3},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {bos: {"id": bos, "ids": [first], "tokens": [bos]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": first + i, "content": text, "special": True, **flags}
            for i, text in enumerate(tokens[first:])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": template,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "fuse_unk": False,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {text: i for i, text in enumerate(tokens[:first])},
            "merges": merges,
        },
    }


def tensors(shape, rng):
    """Yield (name, shape, type, data) as `safetensors.write` takes them."""
    attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "input_layernorm": (shape.hidden,),
        "self_attn.q_proj": (attention, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.attn_sub_norm": (attention,),
        "self_attn.o_proj": (shape.hidden, attention),
        "post_attention_layernorm": (shape.hidden,),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.ffn_sub_norm": (shape.ffn,),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }
    every = {"embed_tokens": (shape.vocab, shape.hidden), "norm": (shape.hidden,)}
    for i in range(shape.layers):
        every |= {f"layers.{i}.{name}": size for name, size in sizes.items()}
    for name, size in every.items():
        yield f"model.{name}.weight", size, "BF16", bf16(rng, *size)


def bf16(rng, n_rows, n_cols=None):
    """Random numbers around 0; a norm, of one axis, is of ones."""
    if n_cols is None:
        yield np.full(n_rows, 0x3F80, np.uint16)
        return
    step = max(1, CHUNK // 4 // n_cols)
    for start in range(0, n_rows, step):
        values = rng.standard_normal((min(step, n_rows - start), n_cols), np.float32)
        values *= n_cols**-0.5
        yield (values.view(np.uint32) >> 16).astype(np.uint16)


def measure(folder):
    """Convert the folder to a GGUF beside it, and watch the memory."""
    most = 0

    def watch(*_):
        nonlocal most
        lines = Path("/proc/self/status").read_text().splitlines()
        anonymous = next(line for line in lines if line.startswith("RssAnon"))
        most = max(most, 1024 * int(anonymous.split()[1]))

    done = convert(folder, Path(f"{folder}.gguf"), force=True, progress=watch)
    return {
        "bytes_in": done.bytes_in,
        "bytes_out": done.bytes_out,
        "seconds": round(done.seconds, 1),
        "MB/s": round(done.bytes_in / done.seconds / 1e6),
        "peak_rss": done.peak_rss,
        "peak_anonymous": most,
        "notes": done.notes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="FOLDER")
    for field in Shape.__dataclass_fields__.values():
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=int, default=field.default, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="convert it and measure; a folder that exists is taken as it is",
    )
    given = vars(parser.parse_args())
    folder, seed, memory = Path(given.pop("folder")), given.pop("seed"), given.pop("memory")
    if not (memory and folder.exists()):
        write(folder, Shape(**given), seed)
    if memory:
        print(json.dumps(measure(folder)))


if __name__ == "__main__":
    main()
