"""How well a model foretells a text, with two types of keys and values.

python examples/perplexity.py TEXT_FILE [MODEL]
"""

import sys
from pathlib import Path

import bitnet

text = Path(sys.argv[1]).read_text("utf-8")

for kv_dtype in ("f16", "int8"):
    with bitnet.load(*sys.argv[2:3], kv_dtype=kv_dtype) as model:
        # As llama.cpp counts: windows of 256 tokens, the second half of each is scored.
        result = bitnet.perplexity(model, text, context=256)
        print(
            f"{kv_dtype:5} perplexity {result.perplexity:.3f} ± {result.error:.3f}, "
            f"{result.bits_per_byte:.4f} bits per byte, {result.n_tokens} tokens"
        )
