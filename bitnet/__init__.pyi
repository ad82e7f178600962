"""The names of the package, see __init__.py, which imports them late."""

from .api.evaluation import compare as compare
from .api.evaluation import perplexity as perplexity
from .api.info import info as info
from .api.load import load as load
from .api.model import Model as Model
from .api.stream import Stream as Stream
from .errors import Cancelled as Cancelled
from .errors import ContextFull as ContextFull
from .errors import FormatError as FormatError
from .errors import GrammarError as GrammarError
from .errors import MemoryLimitExceeded as MemoryLimitExceeded
from .errors import NotFinite as NotFinite
from .errors import PoolExhausted as PoolExhausted
from .errors import TemplateError as TemplateError
from .generation.request import Completion as Completion
from .generation.session import Session as Session
from .runtime.memory_report import MemoryReport as MemoryReport
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
