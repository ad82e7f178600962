"""Text as it comes, left at the end of its first sentence: python examples/stream.py [MODEL]"""

import sys

import bitnet

with (
    bitnet.load(*sys.argv[1:2]) as model,
    model.stream("It was", max_tokens=200, temperature=0.8, seed=1) as stream,
):
    for piece in stream:  # whole characters, a token's at a time
        print(piece, end="", flush=True)
        if "." in piece:
            break  # leaving the block cancels what is not computed yet
print()
