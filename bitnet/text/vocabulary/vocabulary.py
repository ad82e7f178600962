"""Vocabulary: what a tokenizer needs to know of a model's tokens, whatever file they come from."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import FormatError
from ...models.config import ModelConfig
from ..chat_template import MAX_TEMPLATE, looks_like_mark, marks_of

# tokenizer.ggml.model of the two kinds: byte-level BPE, and SentencePiece's pieces
BYTE_LEVEL_MODEL, PIECES_MODEL = "gpt2", "llama"
TEMPLATE_KEY = "tokenizer.chat_template"  # of a GGUF
# Characters of a template times the tokens that are looked for in it, which takes three seconds at
# most; Gemma's 6,000 tokens with the longest published template are a fifth of it.
MAX_COMPARED = 1 << 30

# tokenizer.ggml.token_type, and the types of pieces in tokenizer.model
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
OUTPUT_ONLY = 7  # a type of ours: a token that no text becomes, and that has a text nevertheless

SPACE = "\u2581"  # the character by which SentencePiece writes a space

# Tokens that end a turn or a text in the published vocabularies. Files often name only one of them.
END_TOKENS = (
    "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<|eom_id|>",
    "<end_of_turn>", "</s>",
)  # fmt: skip
# Also where a file lists them as ordinary added tokens: a text could end a turn, or forge one.
ALWAYS_SPECIAL = frozenset((*END_TOKENS, "<start_of_turn>", "<|im_start|>"))

# A normalizer may make text shorter (NFC joins a letter and its accents): never by more than this.
MAX_SHRINKING = 8

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _bytes_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable Latin-1 stands for itself."""
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in same]
    return {chr(byte): byte for byte in same} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTE_OF = _bytes_alphabet()


@dataclass
class Vocabulary:
    """The tokens of a model. special: {text: id}.

    encode: (text, whether it begins the prompt) -> ids; special tokens and marks in it are text.
    token: id -> text as stored, None if there is none.
    longest: () -> characters of text that one token stands for at most, may be infinite.
    prefix, suffix: ids in front of every prompt, and behind every text that is embedded.
    byte_level: GPT-2's alphabet stands for bytes; otherwise U+2581 is a space and <0x0A> a byte.
    drops_space: decoding takes away one space in front, which encoding has put there.
    marks: {text: id} of the ordinary tokens that the chat template writes between messages; as
    special ones, but for their text, which is shown.
    verbatim: ids of the added tokens, whose text is in no alphabet of bytes.
    strips: {text of a special token: (left, right)}, see SpecialTokens.
    """

    encode: Callable[[str, bool], list[int]]
    token: Callable[[int], str | None]
    longest: Callable[[], float]
    special: dict[str, int]
    prefix: list[int]
    suffix: list[int]
    byte_level: bool
    drops_space: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    chat_template: str | None
    marks: dict[str, int] = field(default_factory=dict)
    verbatim: Collection[int] = frozenset()
    strips: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    @cached_property
    def max_token_length(self) -> float:
        """Characters of text that one token stands for at most, to bound a text not encoded yet."""
        return max(self.longest(), 1)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of text that a token stands for; none for special and unknown ones."""
        token = self.token(token_id)
        if token is None or self.is_special(token_id):
            return b""
        if self.byte_level:
            if token_id in self.verbatim:
                return token.encode()
            try:
                return bytes([BYTE_OF[character] for character in token])
            except KeyError:  # a word of a vocabulary that is not quite in the alphabet
                return token.encode()
        byte = byte_of(token)
        return bytes([byte]) if byte is not None else token.replace(SPACE, " ").encode()


def byte_of(token: str) -> int | None:
    """The byte that a token like <0x0A> stands for, None for any other."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


def end_ids(
    special: Mapping[str, int], config: ModelConfig, more: Iterable[int] = ()
) -> tuple[int, ...]:
    """The ids that end a text: those of the configuration first, then those known by their text."""
    known = [special[text] for text in END_TOKENS if text in special]
    return tuple(dict.fromkeys([*config.eos_token_ids, *more, *known]))


def bos_eos_ids(config: ModelConfig) -> set[int]:
    """The begin and end tokens, which are special whatever a file calls them."""
    bos = () if config.bos_token_id is None else (config.bos_token_id,)
    return {*bos, *config.eos_token_ids}


def checked_template(template: Any, path: Path) -> str | None:
    """A chat template, or None, also for a blank one; FormatError if it is not text."""
    if template is not None and not isinstance(template, str):
        raise FormatError(path, "chat_template", type(template).__name__, "a string")
    return template if template and template.strip() else None


def marks_among(added: Mapping[str, int], template: str | None, path: Path) -> dict[str, int]:
    """Vocabulary.marks among the ordinary added tokens {text: id}.

    FormatError for more than a template of its length is searched for.
    """
    if not template or len(template) > MAX_TEMPLATE:  # no conversation is rendered
        return {}
    texts = [text for text in added if looks_like_mark(text)]
    most = MAX_COMPARED // len(template)
    if len(texts) > most:
        limit = f"at most {most}, with a chat template of {len(template)} characters"
        raise FormatError(path, "added tokens", len(texts), limit)
    return {text: added[text] for text in marks_of(template, texts)}
