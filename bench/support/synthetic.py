"""Write a GGUF of the exact shape of bitnet-b1.58-2B-4T, with random weights.

`python bench/support/synthetic.py OUT.gguf` takes seconds. Everything that costs time or memory is
as in the published file: tensor names, shapes and types, metadata, a byte-level BPE vocabulary of
128,256 tokens with a quarter of a million merges. Only what it says is noise.
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np

from bitnet.formats import gguf
from bitnet.formats.ternary_layouts import I2_S_TAIL

CHUNK = 1 << 24  # bytes of random numbers held at a time
N_SPECIAL = 256
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by how often English uses them
ARCHITECTURE = "bitnet-b1.58"


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


def write(path, shape=Shape(), seed=0, architecture=ARCHITECTURE, type_name="I2_S"):
    """Write the model, 1.2 GB for the default shape. The arguments determine every byte.

    type_name: of the ternary weights, I2_S or TQ2_0.
    """
    rng = np.random.Generator(np.random.SFC64(seed))
    gguf.write(path, metadata(shape, architecture), list(tensors(shape, rng, type_name)))


def metadata(shape, architecture=ARCHITECTURE):
    """The keys of the official file, a working vocabulary included; no chat template."""
    tokens, merges = vocabulary(shape.vocab)
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
        "rope.freq_base": 500000.0,
    }
    return {
        "general.architecture": architecture,
        "general.name": "synthetic",
        "general.file_type": 40,
        "general.quantization_version": 2,
        **{f"{architecture}.{name}": value for name, value in values.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.scores": np.zeros(shape.vocab, np.float32),
        "tokenizer.ggml.token_type": np.where(np.arange(shape.vocab) < bos, 1, 3).astype(np.int32),
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": bos + 1,
        "tokenizer.ggml.padding_token_id": bos + 1,
        "tokenizer.ggml.add_bos_token": True,
    }


def vocabulary(size):
    """(tokens, merges), with two merges for each piece of more than two characters.

    The tokens: the bytes, every piece of one to three letters with and without a space before it,
    as many pieces of four letters as fit, then 256 special tokens.
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
    special[0], special[1], special[9] = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
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


def tq2_0(rng, n_rows, n_cols):
    """TQ2_0: the same in blocks of 256 weights, 64 bytes and a scale in float16."""
    if n_cols % 256:
        raise ValueError(f"{n_cols} columns are not a multiple of 256")
    scale = np.frombuffer(np.float16((n_cols * 2 / 3) ** -0.5).tobytes(), np.uint8)
    step = CHUNK // n_cols
    for start in range(0, n_rows, step):
        n_blocks = min(step, n_rows - start) * n_cols // 256
        blocks = np.empty((n_blocks, 66), np.uint8)
        blocks[:, :64], blocks[:, 64:] = codes(rng, n_blocks * 64).reshape(-1, 64), scale
        yield blocks


def codes(rng, n):
    """Random bytes of four codes each, none of them 3."""
    digits = itertools.product(range(3), repeat=4)
    valid = np.array([a << 6 | b << 4 | c << 2 | d for a, b, c, d in digits], np.uint8)
    return valid[np.arange(256) % 81][np.frombuffer(rng.bytes(n), np.uint8)]


TERNARY = {"I2_S": ternary, "TQ2_0": tq2_0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", metavar="OUT.gguf")
    for field in Shape.__dataclass_fields__.values():
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=int, default=field.default, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    given = vars(parser.parse_args())
    path, seed = given.pop("path"), given.pop("seed")
    write(path, Shape(**given), seed)


if __name__ == "__main__":
    main()
