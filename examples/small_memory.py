"""Text within 64 MiB: python examples/small_memory.py [MODEL [LIMIT]]

The limit is for what the process grows by: mapped weights are not counted, as the system can drop
and read them again.
"""

import sys

import bitnet

path = sys.argv[1] if len(sys.argv) > 1 else None
limit = sys.argv[2] if len(sys.argv) > 2 else "64MiB"

try:
    # int8 keys and values take half of the bytes of float16, one thread needs one set of scratch.
    model = bitnet.load(path, memory_limit=limit, kv_dtype="int8", threads=1)
except bitnet.MemoryLimitExceeded as error:
    sys.exit(str(error))  # before anything was allocated: what is needed, and what would fit

with model:
    print(model.generate("It was", max_tokens=60, temperature=0.8, seed=1).text)
    print(model.memory())  # bytes by purpose: mapped files, the pool, the rest
