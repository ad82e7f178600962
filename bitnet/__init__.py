"""Ternary (BitNet b1.58) language models on ordinary CPUs: load() one, generate, stream, chat."""

from . import waiting  # noqa: F401  # isort: skip  # first: it loads OpenMP's library
from .api import Model, Stream
from .cache import ContextFull
from .chat import TemplateError
from .engine import Cancelled
from .formats import FormatError
from .generation import Completion
from .loading import VERSION as __version__
from .loading import info, load
from .memory import PoolExhausted
from .memory_plan import MemoryLimitExceeded
from .report import MemoryReport
from .session import Session

__all__ = [
    "Cancelled",
    "Completion",
    "ContextFull",
    "FormatError",
    "MemoryLimitExceeded",
    "MemoryReport",
    "Model",
    "PoolExhausted",
    "Session",
    "Stream",
    "TemplateError",
    "__version__",
    "info",
    "load",
]
