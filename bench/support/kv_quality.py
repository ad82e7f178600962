"""What rounding keys and values costs: bits per byte of a text, by dtype of the KV cache.

python bench/support/kv_quality.py TEXT [MODEL]: the text in pieces of the context's length, each
begun anew. f32 is the reference; the goals are 0.1 % for f16 and 1 % for int8.
"""

import argparse
import math
from pathlib import Path

import bitnet

DTYPES = ("f32", "f16", "int8")


def bits_per_byte(model, text):
    """Of every token but the first of each piece of the context's length."""
    ids = model.tokenizer.encode(text)
    pieces = [ids[i : i + model.context] for i in range(0, len(ids), model.context)]
    nats = sum(-model.loglikelihood(p[:1], p[1:])[0] for p in pieces if len(p) > 1)
    return nats / math.log(2) / len(text.encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("model", nargs="?", help="default: the bundled one")
    args = parser.parse_args()
    text, found = args.text.read_text("utf-8"), {}
    for dtype in DTYPES:
        with bitnet.load(args.model, kv_dtype=dtype) as model:
            found[dtype] = bits_per_byte(model, text)
        change = 100 * (found[dtype] / found["f32"] - 1)
        print(f"{dtype:>4}  {found[dtype]:.5f} bits per byte  {change:+.3f} %", flush=True)


if __name__ == "__main__":
    main()
