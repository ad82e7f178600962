"""Text to token ids and back: prompts, conversations, and text that arrives a token at a time."""

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn, Self

from ..errors import ContextFull, TemplateError
from ..models.config import ModelConfig
from . import reasoning, vocabulary
from .chat_template import ChatTemplate, TemplateValues, check_unicode
from .special_tokens import SpecialTokens
from .vocabulary import TokenizerSource, Vocabulary

CHARACTERS_PER_TOKEN = 4  # in most languages; only where encoding a long text is tried first
_MAX_OPENING = 16  # tokens that `<think>` and the white space behind it may take


class Tokenizer:
    """The tokenizer of one model; may be used from several threads.

    bos_id: the token a text begins with, or None. eos_ids: the tokens that end a turn or a text.
    chat_template: ChatTemplate or None.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._written = vocabulary.special | vocabulary.marks
        self._special = SpecialTokens(self._written, vocabulary.strips)
        self._hidden = SpecialTokens(vocabulary.special)
        self.bos_id: int | None = vocabulary.bos_id
        self.eos_ids: tuple[int, ...] = vocabulary.eos_ids
        self.chat_template: ChatTemplate | None = None
        if vocabulary.chat_template is not None:
            bos, eos = (
                "" if token_id is None else vocabulary.token(token_id) or ""
                for token_id in (self.bos_id, next(iter(self.eos_ids), None))
            )
            self.chat_template = ChatTemplate(vocabulary.chat_template, bos, eos)

    def __repr__(self) -> str:
        template = "a" if self.chat_template else "no"
        return f"<Tokenizer: bos {self.bos_id}, eos {list(self.eos_ids)}, {template} chat template>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Tokenizer is of its process: load its model there, bitnet.load(PATH).tokenizer"
        )

    def __copy__(self) -> Self:
        return self  # it does not change

    def __deepcopy__(self, copied: dict[int, Any]) -> Self:
        return self

    @classmethod
    def from_source(cls, source: TokenizerSource, config: ModelConfig) -> Self | None:
        """From the tokenizer_source of a Checkpoint and its ModelConfig; None where the model has
        no tokenizer.

        FormatError for a tokenizer that is damaged or of a kind this version does not read.
        """
        vocab = vocabulary.from_source(source, config)
        return None if vocab is None else cls(vocab)

    def encode(
        self,
        text: str,
        add_bos: bool = True,
        parse_special: bool = False,
        limit: int | None = None,
        add_eos: bool = False,
    ) -> list[int]:
        """The token ids of a text.

        add_bos: begin as the model's prompts begin (once, also if the text does so itself).
        add_eos: end as the texts end that an embedding model was trained on, where it wants that.
        parse_special: special tokens written in the text are those tokens; otherwise they are text.
        limit: ContextFull for a text of more tokens, which is not encoded to its end.
        ValueError for text with half a surrogate pair.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: {type(text).__name__} (a str)")
        check_unicode(text, "text")
        pieces = list(self._special.split(text)) if parse_special else [(text, False)]
        ids = self._ids(pieces, add_bos, limit)
        return ids + self._vocabulary.suffix if add_eos else ids

    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        limit: int | None = None,
        values: TemplateValues | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        continues: bool = False,
    ) -> list[int]:
        """The token ids of a conversation, [{"role": "user", "content": text}, ...].

        As transformers does it: the rendered text is encoded as a whole, so tokens may span the
        border between header and content. Special tokens inside a message are text, and so are the
        ordinary ones that the template writes, but for the assistant's messages.
        limit: see encode. values: see ChatTemplate.check_values. tools, continues: see
        ChatTemplate.pieces. ValueError for malformed messages
        or values, TemplateError (one too) without a template or if it fails.
        """
        if self.chat_template is None:
            raise TemplateError("chat template: the model has none (give a plain prompt instead)")
        messages = list(messages)
        if limit is not None:  # before the template, which copies it all several times
            contents = (m.get("content") for m in messages if isinstance(m, Mapping))
            self._check_length(contents, limit)
        pieces = self.chat_template.pieces(
            messages,
            self._special,
            add_generation_prompt,
            self._hidden,
            values,
            tools,
            continues,
        )
        return self._ids(pieces, True, limit)

    @cached_property
    def reply_opener(self) -> int | None:
        """The special token that the beginning of a reply begins with, as `<|im_start|>`: up to the
        last one in a prompt, messages are shown as they will be in the next turn. None where the
        template has none."""
        try:
            asked = [{"role": "user", "content": "a"}]
            opened, plain = (self.chat(asked, is_opened) for is_opened in (True, False))
        except ValueError:
            return None
        is_longer = len(opened) > len(plain) and opened[: len(plain)] == plain
        opener = opened[len(plain)] if is_longer else None
        return opener if opener is not None and self.token(opener) in self._written else None

    def opens_reasoning(self, ids: Sequence[int]) -> bool:
        """Whether a prompt ends with `<think>`, so that the reply begins with reasoning."""
        return self.decode(ids[-_MAX_OPENING:]).rstrip().endswith(reasoning.BEGIN)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens; bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join(map(stream.push, ids)) + stream.finish()

    def stream(self, continues: bool = False) -> "DecodeStream":
        """A decoder for ids that arrive one by one.

        continues: they go on from a text, so that a space in front belongs between the two.
        """
        return DecodeStream(self.token_bytes, self._vocabulary.drops_space and not continues)

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"), None if there is none."""
        if token_id < 0:
            raise ValueError(f"token id: {token_id} (at least 0)")
        return self._vocabulary.token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of text that a token stands for; none for special and unknown ones."""
        if token_id < 0:
            raise ValueError(f"token id: {token_id} (at least 0)")
        return self._vocabulary.token_bytes(token_id)

    def _ids(self, pieces: list[tuple[str, bool]], add_bos: bool, limit: int | None) -> list[int]:
        if limit is not None:
            self._check_length((piece for piece, _ in pieces), limit)
        ids: list[int] = []
        begins = True
        for piece, is_special in pieces:
            if is_special:
                ids.append(self._written[piece])
            else:
                if limit is not None:
                    self._check_beginning(piece, begins, limit)
                ids += self._vocabulary.encode(piece, begins)
            begins = False
        prefix = self._vocabulary.prefix
        ids = prefix + ids if add_bos and ids[: len(prefix)] != prefix else ids
        if limit is not None and len(ids) > limit:
            raise ContextFull(0, len(ids), limit)
        return ids

    def _check_length(self, texts: Iterable[Any], limit: int) -> None:
        """ContextFull for texts that have more tokens even if all of these are the longest."""
        length = sum(len(text) for text in texts if isinstance(text, str))
        n_minimum = length // self._vocabulary.max_token_length
        if n_minimum > limit:
            raise ContextFull(0, int(n_minimum), limit, True)

    def _check_beginning(self, text: str, begins: bool, limit: int) -> None:
        """ContextFull for a long text whose beginning has clearly more tokens.

        So a text of megabytes, which takes seconds, is not encoded to learn that it is too long.
        Beginnings are doubled: all of them together take no longer than the text.
        """
        length = CHARACTERS_PER_TOKEN * limit + 1024
        while length < len(text):
            found = len(self._vocabulary.encode(text[:length], begins))
            if found > limit + limit // 8 + 64:  # what is behind can join some at the end
                raise ContextFull(0, found, limit, True)
            length *= 2


class DecodeStream:
    """Token ids to text, never half a character: its bytes are held back until it is whole.

    token_bytes: of Tokenizer. drops_space: whether one space in front is taken away.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], drops_space: bool) -> None:
        self._token_bytes, self._space_to_drop = token_bytes, drops_space
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, often "" for a part of an emoji."""
        data = self._token_bytes(token_id)
        if data and self._space_to_drop:
            data, self._space_to_drop = data.removeprefix(b" "), False
        return self._characters.decode(data)

    def finish(self) -> str:
        """The rest: U+FFFD if the ids ended inside a character."""
        return self._characters.decode(b"", final=True)
