"""Ternary (BitNet b1.58) language models on ordinary CPUs: load() one, generate, stream, chat."""

from . import extensions  # noqa: F401  # isort: skip  # first: are the compiled modules there?
from .api.evaluation import compare, perplexity
from .api.info import info
from .api.load import load
from .api.model import Model
from .api.stream import Stream
from .errors import (
    Cancelled,
    ContextFull,
    FormatError,
    GrammarError,
    MemoryLimitExceeded,
    NotFinite,
    PoolExhausted,
    TemplateError,
)
from .generation.request import Completion
from .generation.session import Session
from .runtime.memory_report import MemoryReport
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
