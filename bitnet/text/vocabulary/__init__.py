"""Vocabularies as files hold them: from text to token ids and back."""

from .sources import TokenizerSource, from_source
from .vocabulary import Vocabulary

__all__ = ["TokenizerSource", "Vocabulary", "from_source"]
