"""Is a model file sound, is it the same model as another, how do its bytes lie?"""

from .result import Report
from .verifier import AUTO, verify

__all__ = ["AUTO", "Report", "verify"]
