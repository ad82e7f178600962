"""Ternary (BitNet b1.58) language models on ordinary CPUs: load() one, generate, stream, chat.

All names but the version are imported together when the first of them is asked for (PEP 562): numpy
and the compiled modules take 0.2 s, which `bitnet --help` does without. __init__.pyi says to type
checkers and editors what they are.
"""

import importlib

from . import extensions  # noqa: F401  # isort: skip  # first: are the compiled modules there?
from .version import VERSION as __version__

__all__ = [
    "Cancelled",
    "Completion",
    "ContextFull",
    "FormatError",
    "GrammarError",
    "MemoryLimitExceeded",
    "MemoryReport",
    "Model",
    "NotFinite",
    "PoolExhausted",
    "Session",
    "Stream",
    "TemplateError",
    "__version__",
    "compare",
    "info",
    "load",
    "perplexity",
]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = importlib.import_module(".public", __name__)  # other threads wait for the whole of it
    globals().update({each: getattr(public, each) for each in __all__ if each != "__version__"})
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})
