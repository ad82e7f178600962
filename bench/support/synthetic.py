"""Write a GGUF of the exact shape of a published model, with random weights.

`python bench/support/synthetic.py OUT.gguf` takes seconds: bitnet-b1.58-2B-4T, or with
`--model bonsai-4b` Ternary Bonsai of that size (types PQ2_0, Q2_0 of 64, TQ2_0). Everything that
costs time or memory is as in the published file: tensor names, shapes and types, metadata, a
byte-level BPE vocabulary of as many tokens with twice as many merges. Only what it says is noise.
"""

import argparse
import itertools
import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from bitnet.formats import gguf
from bitnet.formats.ternary_layouts import I2_S_TAIL

CHUNK = 1 << 24  # bytes of random numbers held at a time
N_SPECIAL = 256
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by how often English uses them
ARCHITECTURE = "bitnet-b1.58"
BYTES = {  # of a value
    "I2_S": 1 / 4, "TQ2_0": 66 / 256, "PQ2_0": 34 / 128, "Q2_0_G64": 18 / 64, "F16": 2, "F32": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    hidden: int = 2560
    ffn: int = 6912
    layers: int = 30
    heads: int = 20
    kv_heads: int = 5
    head_dim: int = 128
    vocab: int = 128256
    context: int = 4096


# FORMATS: what the sizes of the published files say of 1.7B, 4B and 8B
SHAPES = {
    "2b-4t": Shape(),
    "bonsai-1.7b": Shape(2048, 6144, 28, 16, 8, 128, 151669, 32768),
    "bonsai-4b": Shape(2560, 9728, 36, 32, 8, 128, 151669, 32768),
    "bonsai-8b": Shape(4096, 12288, 36, 32, 8, 128, 151669, 65536),
}
UNTIED = {"bonsai-8b"}  # with a head of its own


def write(path, shape=Shape(), seed=0, architecture=ARCHITECTURE, type_name="I2_S", tied=True):
    """Write the model, 1.2 GB for the default shape. The arguments determine every byte.

    architecture: "qwen3" for the graph of Bonsai, whose embedding is ternary too, and its head
    where it is not tied. type_name: of the ternary weights, a key of TERNARY.
    """
    given = _given(shape, seed, architecture, type_name, tied)
    gguf.write(path, metadata(shape, architecture), given)


def n_bytes(shape=Shape(), seed=0, architecture=ARCHITECTURE, type_name="I2_S", tied=True):
    """What the tensors take that `write` writes."""
    given = _given(shape, seed, architecture, type_name, tied)
    return round(sum(math.prod(size) * BYTES[kind] for _, size, kind, _ in given))


def _given(shape, seed, architecture, type_name, tied):
    rng = np.random.Generator(np.random.SFC64(seed))
    if architecture == "qwen3":
        return list(qwen3_tensors(shape, rng, type_name, tied))
    return list(tensors(shape, rng, type_name))


def metadata(shape, architecture=ARCHITECTURE):
    """The keys of the official file, a working vocabulary included; no chat template."""
    is_qwen = architecture == "qwen3"
    tokens, merges = vocabulary(shape.vocab, QWEN_SPECIAL if is_qwen else LLAMA_SPECIAL)
    bos = shape.vocab - N_SPECIAL
    values = {
        "vocab_size": shape.vocab,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "block_count": shape.layers,
        "rope.dimension_count": shape.head_dim,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1e6 if is_qwen else 500000.0,
    }
    if is_qwen:
        del values["vocab_size"], values["rope.dimension_count"]
    return {
        "general.architecture": architecture,
        "general.name": "synthetic",
        "general.file_type": 40,
        "general.quantization_version": 2,
        **{f"{architecture}.{name}": value for name, value in values.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2" if is_qwen else "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.scores": np.zeros(shape.vocab, np.float32),
        "tokenizer.ggml.token_type": np.where(np.arange(shape.vocab) < bos, 1, 3).astype(np.int32),
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": bos + 1,
        "tokenizer.ggml.padding_token_id": bos + 1,
        "tokenizer.ggml.add_bos_token": not is_qwen,
    }


LLAMA_SPECIAL = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 9: "<|eot_id|>"}
QWEN_SPECIAL = {0: "<|endoftext|>", 1: "<|im_end|>", 2: "<|im_start|>"}


def vocabulary(size, named=LLAMA_SPECIAL):
    """(tokens, merges), with two merges for each piece of more than two characters.

    The tokens: the bytes, every piece of one to three letters with and without a space before it,
    as many pieces of four letters as fit, then 256 special tokens, of which some are named.
    """
    alphabet = byte_alphabet()
    space = alphabet[ord(" ")]
    pieces = ["".join(p) for n in (2, 3) for p in itertools.product(LETTERS, repeat=n)]
    pieces = sorted(pieces + [space + p for p in (*LETTERS, *pieces)], key=len)
    n_pieces = size - N_SPECIAL - len(alphabet)
    if n_pieces < 0:
        raise ValueError(f"a vocabulary of {size} has no room for {N_SPECIAL} special tokens")
    four = ("".join(p) for p in itertools.product(LETTERS, repeat=4))
    pieces = list(itertools.islice(itertools.chain(pieces, four), n_pieces))
    merges = [f"{p[:cut]} {p[cut:]}" for p in pieces for cut in range(1, min(len(p), 3))]
    special = [f"<|reserved_{i}|>" for i in range(N_SPECIAL)]
    for i, name in named.items():
        special[i] = name
    return alphabet + pieces + special, merges


def byte_alphabet():
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (b for b in range(256) if b not in plain)
    shown = {b: b for b in plain} | {b: 256 + i for i, b in enumerate(rest)}
    return [chr(shown[b]) for b in range(256)]


def tensors(shape, rng, type_name="I2_S"):
    """Yield (name, shape, type, data) as `gguf.write` takes them; big data as generators."""
    attention = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    embedding = (shape.vocab, shape.hidden)
    yield "token_embd.weight", embedding, "F16", normal(rng, *embedding)
    yield "output_norm.weight", (shape.hidden,), "F32", np.ones(shape.hidden, np.float32)
    norms = {
        "attn_norm": shape.hidden,
        "attn_sub_norm": attention,
        "ffn_norm": shape.hidden,
        "ffn_sub_norm": shape.ffn,
    }
    linears = {
        "attn_q": (attention, shape.hidden),
        "attn_k": (kv, shape.hidden),
        "attn_v": (kv, shape.hidden),
        "attn_output": (shape.hidden, attention),
        "ffn_gate": (shape.ffn, shape.hidden),
        "ffn_up": (shape.ffn, shape.hidden),
        "ffn_down": (shape.hidden, shape.ffn),
    }
    for layer in range(shape.layers):
        for name, n in norms.items():
            yield f"blk.{layer}.{name}.weight", (n,), "F32", np.ones(n, np.float32)
        for name, size in linears.items():
            yield f"blk.{layer}.{name}.weight", size, type_name, TERNARY[type_name](rng, *size)


def qwen3_tensors(shape, rng, type_name, tied):
    """The same of Qwen3: every matrix is ternary, queries and keys have a norm for each head."""

    def matrix(name, *size):
        return f"{name}.weight", size, type_name, TERNARY[type_name](rng, *size)

    def norm(name, n):
        return f"{name}.weight", (n,), "F32", np.ones(n, np.float32)

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if not tied:
        yield matrix("output", shape.vocab, shape.hidden)
    yield matrix("token_embd", shape.vocab, shape.hidden)
    yield norm("output_norm", shape.hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield norm(block + "attn_norm", shape.hidden)
        yield norm(block + "attn_q_norm", shape.head_dim)
        yield norm(block + "attn_k_norm", shape.head_dim)
        yield norm(block + "ffn_norm", shape.hidden)
        yield matrix(block + "attn_q", q, shape.hidden)
        yield matrix(block + "attn_k", kv, shape.hidden)
        yield matrix(block + "attn_v", kv, shape.hidden)
        yield matrix(block + "attn_output", shape.hidden, q)
        yield matrix(block + "ffn_gate", shape.ffn, shape.hidden)
        yield matrix(block + "ffn_up", shape.ffn, shape.hidden)
        yield matrix(block + "ffn_down", shape.hidden, shape.ffn)


def normal(rng, n_rows, n_cols):
    """Embedding rows, float16: the logits of a normalised state get a spread of about 1."""
    step = max(1, CHUNK // 4 // n_cols)
    for start in range(0, n_rows, step):
        values = rng.standard_normal((min(step, n_rows - start), n_cols), np.float32)
        values *= n_cols**-0.5
        yield values.astype(np.float16)


def ternary(rng, n_rows, n_cols):
    """I2_S: codes 0, 1, 2 equally often, four in a byte; a scale that keeps the input's spread."""
    if n_cols % 128:
        raise ValueError(f"{n_cols} columns are not a multiple of 128")
    left = n_rows * n_cols // 4
    while left:
        n = min(CHUNK, left)
        yield codes(rng, n)
        left -= n
    yield np.float32((n_cols * 2 / 3) ** -0.5).tobytes() + bytes(I2_S_TAIL - 4)


def blocks(rng, n_rows, n_cols, n_values, scale_first):
    """Blocks of n_values codes with a scale in float16, which differs by group and keeps the spread
    of the input."""
    if n_cols % n_values:
        raise ValueError(f"{n_cols} columns are not a multiple of {n_values}")
    step = max(1, CHUNK // n_cols)
    for start in range(0, n_rows, step):
        n_blocks = min(step, n_rows - start) * n_cols // n_values
        scales = rng.lognormal(0, 0.3, (n_blocks, 1)) * (n_cols * 2 / 3) ** -0.5
        if n_values == 64:  # published files hold the scale of a group of 128 twice
            scales[1::2] = scales[: n_blocks // 2 * 2 : 2]
        parts = [scales.astype("<f2").view(np.uint8), codes(rng, n_blocks * n_values // 4)]
        parts[1] = parts[1].reshape(n_blocks, -1)
        yield np.hstack(parts if scale_first else parts[::-1])


def codes(rng, n):
    """Random bytes of four codes each, none of them 3."""
    digits = itertools.product(range(3), repeat=4)
    valid = np.array([a << 6 | b << 4 | c << 2 | d for a, b, c, d in digits], np.uint8)
    return valid[np.arange(256) % 81][np.frombuffer(rng.bytes(n), np.uint8)]


TERNARY = {
    "I2_S": ternary,
    "TQ2_0": partial(blocks, n_values=256, scale_first=False),
    "PQ2_0": partial(blocks, n_values=128, scale_first=True),
    "Q2_0_G64": partial(blocks, n_values=64, scale_first=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", metavar="OUT.gguf")
    parser.add_argument("--model", choices=SHAPES, default="2b-4t")
    parser.add_argument("--type", choices=TERNARY, help="default: I2_S, of Bonsai PQ2_0")
    for name in Shape.__dataclass_fields__:
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    given = vars(parser.parse_args())
    changes = {name: given[name] for name in Shape.__dataclass_fields__ if given[name] is not None}
    is_bonsai = given["model"] != "2b-4t"
    write(
        given["path"],
        replace(SHAPES[given["model"]], **changes),
        given["seed"],
        "qwen3" if is_bonsai else ARCHITECTURE,
        given["type"] or ("PQ2_0" if is_bonsai else "I2_S"),
        given["model"] not in UNTIED,
    )


if __name__ == "__main__":
    main()
