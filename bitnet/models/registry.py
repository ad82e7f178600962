"""The families of models, one file a graph; found by what a config.json or a GGUF calls them.

A new family is a file beside this one, with its block and its Architecture, and its line here.
"""

from .gemma3 import GEMMA3
from .llama import BITNET, BITNET_B1_58, LLAMA
from .qwen3 import QWEN3

ARCHITECTURES = {arch.name: arch for arch in (BITNET, BITNET_B1_58, LLAMA, QWEN3, GEMMA3)}

BY_HF_ARCHITECTURE = {name: a for a in ARCHITECTURES.values() for name in a.hf_architectures}
BY_MODEL_TYPE = {name: a for a in ARCHITECTURES.values() for name in a.model_types}
BY_GGUF_ARCHITECTURE = {name: a for a in ARCHITECTURES.values() for name in a.gguf_architectures}
