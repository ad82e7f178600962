"""The families of models, one small file a graph; found by what config.json or a GGUF calls them.

A new family is a file here with a Architecture and its block, and its name in this list.
"""

from .gemma3 import GEMMA3
from .llama import BITNET, BITNET_B1_58, LLAMA
from .qwen3 import QWEN3

ARCHITECTURES = {family.name: family for family in (BITNET, BITNET_B1_58, LLAMA, QWEN3, GEMMA3)}

BY_HF_ARCHITECTURE = {name: f for f in ARCHITECTURES.values() for name in f.hf_architectures}
BY_MODEL_TYPE = {name: f for f in ARCHITECTURES.values() for name in f.model_types}
BY_GGUF_ARCHITECTURE = {name: f for f in ARCHITECTURES.values() for name in f.gguf_architectures}
