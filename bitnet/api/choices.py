"""What arguments of load and of the command line may be, for editors, checkers and `--help`.

Imports no numpy and no compiled module. tests/api/test_types.py holds all this against what the
engine itself has.
"""

from typing import Literal, get_args

KVDtype = Literal["f16", "f32", "int8"]  # of cached keys and values
Layout = Literal["128x32", "64x16", "4row"]  # of I2_S tensors in a GGUF
ActivationsMode = Literal["int16", "int8"]
MappingMode = Literal["map", "prefetch", "lock", "copy"]

KV_DTYPES, LAYOUTS = get_args(KVDtype), get_args(Layout)
ACTIVATIONS, MAPPINGS = get_args(ActivationsMode), get_args(MappingMode)
DEFAULT_KV_DTYPE: KVDtype = "f16"
DEFAULT_LAYOUT: Layout = "128x32"
DEFAULT_CONTEXT = 4096  # tokens, where load is not told: 300 MiB of keys and values in a 2B model
MAX_THREADS = 1024  # that may be asked for
MAX_SLOTS = 256  # sequences: a step has 256 rows, one for each that generates

PREFIX_FOLDER_LIMIT = "4GiB"

AUTO_LAYOUT = "auto"  # of verify: find out which it is
RECIPES = ("llama.cpp", "huggingface")  # of perplexity
DEFAULT_WINDOW = 512  # tokens of a window of perplexity
HEAD_TYPES = ("f16", "q8_0", "q6_k")  # of convert: embedding and head in a GGUF
GROUP_TYPES = ("q2_0", "pq2_0", "ptq1_0", "tq1_0", "tq2_0")  # of convert, where groups have scales
