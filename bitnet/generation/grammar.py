"""Text that follows a JSON schema, an expression, a grammar: which tokens may come next.

Needs the extra `grammar` (llguidance). Whatever goes wrong is an error: no text is generated
without the constraint that was asked for.
"""

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GrammarError
from ..text.tokenizer import Tokenizer
from .grammar_check import GrammarCheck, one_line
from .grammar_compiler import ANY_GRAMMAR, compiled
from .json_schema import JSONSchema, Note, prepared

GRAMMAR_EXTRA = "pip install 'bitnet-engine[grammar]'"
MAX_PASSED = 1024  # grammars known to compile, 100 bytes each: agents send the same ones always
MAX_GRAMMAR = 256 << 10  # characters of a grammar, as of the schemas of many tools together
MAX_CHOICES = 2000  # texts to choose from: items that the library's parser may have at one place
# No free white space, which a model could write for ever; "lenient" overrides the schema's own.
# Of oneOf the library follows anyOf, which is the same where no two of them hold at once.
STYLE = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False,
    "coerce_one_of": True,
}  # fmt: skip

log = logging.getLogger("bitnet")

Maker = Callable[[], "Constraint"]


class Grammars:
    """Compiles grammars for the vocabulary of one model. May be used from several threads.

    tokenizer: the model's. vocab_size: of its logits. end_ids: tokens that end a text.

    Each method gives a function that makes a Constraint for one sequence. field: of the request,
    or the argument, which errors name. GrammarError for what cannot be followed, ImportError
    without the extra, OSError where no process can be started in which it is tried.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Iterable[int]) -> None:
        self._source, self._vocab_size, self._end_ids = tokenizer, vocab_size, sorted(end_ids)
        self._tokenizer: Any = None  # llguidance's, made when it is first needed
        self._check = GrammarCheck()
        self._lock = threading.Lock()
        # digests of the latest grammars that were compiled within the limits
        self._passed: OrderedDict[bytes, None] = OrderedDict()
        self._latest: tuple[bytes, Any] | None = None  # (digest, matcher) of the latest one

    def close(self) -> None:
        """End what is being tried; from any thread."""
        self._check.close()

    def of(self, form: str, value: Any, field: str, note: Note | None = None) -> Maker:
        """Text of a form: "json_schema", "grammar", "regex" or "choices", see below."""
        if form == "json_schema":
            return self.of_schema(value, field, note)
        makers = {"grammar": self.of_grammar, "regex": self.of_regex, "choices": self.of_choices}
        return makers[form](value, field)

    def of_schema(self, schema: JSONSchema, field: str, note: Note | None = None) -> Maker:
        """JSON that follows a schema. note: told of what is passed over, see json_schema."""
        text = json.dumps(prepared(schema, field, note or _log), ensure_ascii=False)
        return self._compile("grammar_from_json_schema", text, field, overrides=STYLE)

    def of_regex(self, expression: str, field: str) -> Maker:
        """Text that an expression of Rust's crate regex matches from its begin to its end."""
        return self._compile("grammar_from_regex", _text(expression, field), field)

    def of_choices(self, choices: Sequence[str], field: str) -> Maker:
        """One of several texts."""
        is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
        if not is_list or not all(isinstance(one, str) and one for one in choices):
            raise GrammarError(field, "a list of texts, none of them empty, is needed")
        if not 1 <= len(choices) <= MAX_CHOICES:
            raise GrammarError(field, f"{len(choices)} texts (1 to {MAX_CHOICES})")
        words = [json.dumps(_text(one, field), ensure_ascii=False) for one in choices]
        return self._compile("grammar_from_lark", "start: " + "\n  | ".join(words), field)

    def of_grammar(self, grammar: str, field: str) -> Maker:
        """Text of a grammar in llguidance's Lark or in llama.cpp's GBNF."""
        return self._compile(ANY_GRAMMAR, _text(grammar, field), field)

    def _compile(self, maker: str, text: str, field: str, **options: Any) -> Maker:
        try:
            import llguidance  # noqa: F401
        except ImportError:
            raise ImportError(f"{field}: llguidance is missing: {GRAMMAR_EXTRA}") from None
        if len(text) > MAX_GRAMMAR:
            message = f"a grammar of {len(text)} characters (at most {MAX_GRAMMAR})"
            raise GrammarError(field, message)
        digest = hashlib.sha256(f"{maker} {text}".encode()).digest()
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._wrapped(field)
            if self._latest is None or self._latest[0] != digest:
                self._try(digest, maker, text, options, field)
                matcher, error = compiled(self._tokenizer, maker, text, options)
                if error:
                    raise GrammarError(field, one_line(error))
                self._latest = digest, matcher
            matcher = self._latest[1]
        return lambda: Constraint(matcher.deep_copy(), self._vocab_size, field)

    def _try(
        self, digest: bytes, maker: str, text: str, options: Mapping[str, Any], field: str
    ) -> None:
        """GrammarError unless the grammar can be compiled within the limits."""
        if digest not in self._passed:
            self._check.check(maker, text, options, field)
        self._passed[digest] = None
        self._passed.move_to_end(digest)
        if len(self._passed) > MAX_PASSED:
            self._passed.popitem(last=False)

    def _wrapped(self, field: str) -> Any:
        import llguidance

        if not self._end_ids:
            raise GrammarError(field, "the model has no end token")
        vocabulary = _Vocabulary(self._source, self._vocab_size, self._end_ids[0])
        wrapper = llguidance.TokenizerWrapper(vocabulary)
        return llguidance.LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=self._end_ids)


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
            raise GrammarError(self._field, self._matcher.get_error())


class _Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of every token, and which are special."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int) -> None:
        self._encode = tokenizer.encode
        self.eos_token_id = end_id
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for token_id in range(vocab_size):
            data = tokenizer.token_bytes(token_id)
            if not data:  # special, or no token at all: never a part of a text
                self.special_token_ids.append(token_id)
                data = b"<special %d>" % token_id
            self.tokens.append(data)

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode() if isinstance(text, bytes) else text
        return self._encode(text, add_bos=False)


def _text(value: str, field: str) -> str:
    """A text that is not empty and valid Unicode. GrammarError."""
    if not isinstance(value, str) or not value:
        raise GrammarError(field, "a text that is not empty is needed")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise GrammarError(field, "half a surrogate pair, not valid Unicode") from None
    return value


def _log(field: str, what: str) -> None:
    log.warning("%s: %s is not followed", field, what)
