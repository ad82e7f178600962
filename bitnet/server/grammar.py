"""JSON that follows a schema, calls of tools: which tokens may come next.

Needs the extra `grammar` (llguidance). Whatever goes wrong is an error: no text is generated
without the constraint that was asked for.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..api.model import Model
from .errors import ApiError
from .grammar_check import GrammarCheck, one_line
from .grammar_compiler import compiled
from .schema import JSONSchema
from .schema_bounds import MAX_LENGTH, bounded
from .tools import Tools

GRAMMAR_EXTRA = "pip install 'bitnet-engine[grammar]'"
MAX_PASSED = 1024  # grammars known to compile, 100 bytes each: agents send the same ones always
# No free white space, which a model could write for ever; "lenient" overrides the schema's own.
STYLE = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False,
}  # fmt: skip


class Grammars:
    """Compiles schemas for the vocabulary of one model; used in one thread, but for close."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokenizer: Any = None  # llguidance's, made when it is first needed
        self._check = GrammarCheck()
        # digests of the latest grammars that were compiled within the limits
        self._passed: OrderedDict[bytes, None] = OrderedDict()

    def close(self) -> None:
        """End what is being tried."""
        self._check.close()

    def of_schema(self, schema: JSONSchema, field: str) -> "Callable[[], Constraint]":
        """A function that makes a Constraint for each choice. ApiError for a schema it cannot.

        field: of the request, which errors name.
        """
        text = msgspec.json.encode(bounded(schema, field)).decode()
        return self._compile("grammar_from_json_schema", text, field, overrides=STYLE)

    def of_tools(self, tools: Tools, schema: JSONSchema | None) -> "Callable[[], Constraint]":
        """The same for calls of a tools.Tools; schema: of another reply, None for any text."""
        return self._compile("grammar_from_lark", tools.grammar(STYLE, schema), "tools")

    def _compile(
        self, maker: str, text: str, field: str, **options: Any
    ) -> "Callable[[], Constraint]":
        try:
            import llguidance  # noqa: F401
        except ImportError:
            raise ApiError(400, f"{field}: the server lacks {GRAMMAR_EXTRA}", param=field) from None
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._model, field)
        if len(text) > MAX_LENGTH:  # of tools there are several schemas
            message = f"{field}: schemas of {len(text)} characters (at most {MAX_LENGTH})"
            raise ApiError(400, message, param=field)
        self._try(maker, text, options, field)
        matcher, error = compiled(self._tokenizer, maker, text, options)
        if error:
            raise ApiError(400, f"{field}: {one_line(error)}", param=field)
        return lambda: Constraint(matcher.deep_copy(), self._model.config.vocab_size, field)

    def _try(self, maker: str, text: str, options: Mapping[str, Any], field: str) -> None:
        """ApiError unless the grammar can be compiled within the limits."""
        digest = hashlib.sha256(f"{maker} {text}".encode()).digest()
        if digest not in self._passed:
            self._check.check(maker, text, options, field)
        self._passed[digest] = None
        self._passed.move_to_end(digest)
        if len(self._passed) > MAX_PASSED:
            self._passed.popitem(last=False)


class Constraint:
    """Where one sequence is in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int, field: str) -> None:
        self._matcher, self._vocab_size, self._field = matcher, vocab_size, field
        self._bits = np.zeros(-(-vocab_size // 32), np.int32)

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, bool (vocab,). ValueError if the grammar is too complex."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].astype(bool)

    def accept(self, token_id: int) -> None:
        """A token that was chosen."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"{self._field}: {self._matcher.get_error()}")


class _Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of every token, and which are special."""

    bos_token_id = None

    def __init__(self, model: Model) -> None:
        self._encode = model.tokenizer.encode
        self.eos_token_id = _end_tokens(model)[0]
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for token_id in range(model.config.vocab_size):
            data = model.tokenizer.token_bytes(token_id)
            if not data:  # special, or no token at all: never a part of a text
                self.special_token_ids.append(token_id)
                data = b"<special %d>" % token_id
            self.tokens.append(data)

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode() if isinstance(text, bytes) else text
        return self._encode(text, add_bos=False)


def _tokenizer(model: Model, field: str) -> Any:
    import llguidance

    ends = _end_tokens(model)
    if not ends:
        raise ApiError(400, f"{field}: the model has no end token", param=field)
    wrapper, size = llguidance.TokenizerWrapper(_Vocabulary(model)), model.config.vocab_size
    return llguidance.LLTokenizer(wrapper, n_vocab=size, eos_token=ends)


def _end_tokens(model: Model) -> list[int]:
    return sorted({*model.tokenizer.eos_ids, *model.config.eos_token_ids})
