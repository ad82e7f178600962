"""Vocabularies as files hold them: from text to token ids and back."""

from .sources import from_source
from .vocabulary import Vocabulary

__all__ = ["Vocabulary", "from_source"]
