"""Where a vocabulary comes from: a tokenizer.json, a tokenizer.model, or the metadata of a GGUF.

Whatever the source, special tokens in a text are text to the vocabulary: the tokenizer looks for
them itself.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ...models.config import ModelConfig
from . import from_gguf, from_hf
from .vocabulary import TEMPLATE_KEY, Vocabulary


@dataclass(frozen=True)
class TokenizerSource:
    """What a tokenizer is built from: files of an HF folder, or the metadata of a GGUF.

    path: the file or folder, for messages. sentencepiece: tokenizer.model, where there is no
    tokenizer_json. tokenizer_config: the object in tokenizer_config.json. metadata: the tokenizer.*
    keys of a GGUF, tokenizer.ggml.pre always there; None for a folder.
    """

    path: Path
    tokenizer_json: Path | None = None
    sentencepiece: Path | None = None
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None

    def with_template(self, template: str | None) -> Self:
        """The same with another chat template; None: its own."""
        if template is None:
            return self
        if self.metadata is not None:
            return replace(self, metadata=self.metadata | {TEMPLATE_KEY: template})
        config = self.tokenizer_config | {"chat_template": template}
        return replace(self, tokenizer_config=config)


def from_source(source: TokenizerSource, config: ModelConfig) -> Vocabulary | None:
    """The Vocabulary of a TokenizerSource, None where it holds none.

    config: for vocab_size and the ids of the begin and end tokens. FormatError for a vocabulary
    that is damaged or of a kind this version does not read.
    """
    if source.tokenizer_json is not None:
        return from_hf.from_json(source.tokenizer_json, source.tokenizer_config, config)
    if source.sentencepiece is not None:
        return from_hf.from_model(source.sentencepiece, source.tokenizer_config, config)
    if source.metadata and "tokenizer.ggml.model" in source.metadata:
        return from_gguf.from_metadata(source.path, source.metadata, config)
    return None
