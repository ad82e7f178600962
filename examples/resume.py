"""A session that goes on in another process: python examples/resume.py FILE [MODEL]

The first run reads a text and saves what it has computed of it; every other one takes that up,
reads nothing again, and writes the same continuation.
"""

import sys
import time
from pathlib import Path

import bitnet

TEXT = (
    "The keeper climbed the stairs each night and lit the lamp, so that ships could see the rocks. "
)

file = Path(sys.argv[1])
with bitnet.load(*sys.argv[2:3]) as model, model.session() as session:
    begin = time.perf_counter()
    if file.exists():
        session.restore(file)  # of another model or KV dtype: FormatError
    else:
        session.feed(model.tokenizer.encode(TEXT * 4))
        session.save(file)
    print(f"{session.length} tokens, {1000 * (time.perf_counter() - begin):.0f} ms")

    # Greedy decoding by hand: best(ids) appends them, and gives the likeliest token after them.
    tokens = [session.best(model.tokenizer.encode("Then", add_bos=False))]
    while len(tokens) < 20 and tokens[-1] not in model.config.eos_token_ids:
        tokens.append(session.best(tokens[-1:]))
    print("Then" + model.tokenizer.decode(tokens))
