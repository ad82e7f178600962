"""The families of models, one file a graph; found by what a config.json or a GGUF calls them.

A new family is a file beside this one, with its block and its Architecture, and its line here.
"""

from collections.abc import Iterable

from .architecture import Architecture
from .gemma3 import GEMMA3
from .llama import BITNET, BITNET_B1_58, LLAMA
from .qwen3 import QWEN3
from .qwen3_embedding import QWEN3_EMBEDDING
from .qwen35 import QWEN35

ARCHITECTURES = {
    arch.name: arch
    for arch in (BITNET, BITNET_B1_58, LLAMA, QWEN3, QWEN35, QWEN3_EMBEDDING, GEMMA3)
}

_BY_NAME = [arch for arch in ARCHITECTURES.values() if not arch.distinct_tensors]
BY_HF_ARCHITECTURE = {name: a for a in _BY_NAME for name in a.hf_architectures}
BY_MODEL_TYPE = {name: a for a in _BY_NAME for name in a.model_types}
BY_GGUF_ARCHITECTURE = {name: a for a in _BY_NAME for name in a.gguf_architectures}


def by_tensors(arch: Architecture, names: Iterable[str]) -> Architecture:
    """The family of a file that its own name calls arch: another one of that name, where the file
    has one of the tensors that only such models have.

    names: of the tensors, as the file has them.
    """
    for other in ARCHITECTURES.values():
        shares_name = set(other.model_types) & set(arch.model_types)
        if shares_name and any(name.endswith(other.distinct_tensors) for name in names):
            return other
    return arch
