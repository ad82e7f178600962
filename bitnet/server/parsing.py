"""From the bytes of a body to a request: fields that are checked, refused, or passed over.

Unknown fields are passed over with a line in the log, once for each, as other servers pass over
them; `--strict` refuses them. Fields that would change the answer and are not supported are refused
unless their value asks for nothing.
"""

import functools
import re
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from .errors import ApiError, json_error
from .log import log
from .schema import AnyRequest

# Fields of OpenAI's that do not touch the result of a request
IGNORED = {
    "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
# Fields that are not supported, with the values that ask for nothing, beside null. Those of a
# request's own kind are its own, whatever is here.
REFUSED = {
    "add_special_tokens": (True,), "allowed_token_ids": (), "audio": (), "background": (False,),
    "bad_words": ([],), "best_of": (1,), "chat_template": (), "chat_template_kwargs": ({},),
    "choice": (), "conversation": (), "documents": ([],), "dry_multiplier": (0, 0.0),
    "dynatemp_range": (0, 0.0), "echo": (False,), "function_call": ("none", "auto"),
    "functions": ([],), "grammar": (), "guided_choice": (), "guided_grammar": (),
    "guided_json": (), "guided_regex": (), "include": ([],),
    "include_stop_str_in_output": (False,), "json_schema": (), "length_penalty": (1, 1.0),
    "logits_processors": ([],), "max_tool_calls": (), "mirostat": (0,), "modalities": (["text"],),
    "n": (1,), "n_probs": (0,), "parallel_tool_calls": (True, False), "previous_response_id": (),
    "reasoning": ({},), "regex": (), "response_format": ({"type": "text"},),
    "samplers": (), "skip_special_tokens": (True,), "structured_outputs": ({},), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "top_logprobs": (0,),
    "truncate_prompt_tokens": (-1,), "truncation": ("disabled",), "typical_p": (1, 1.0),
    "use_beam_search": (False,), "web_search_options": (), "xtc_probability": (0, 0.0),
}  # fmt: skip

MAX_TOLD = 256  # names of which the log has a line: nobody fills it with names of his own
_NAME = re.compile(r"[A-Za-z_][\w.\[\]-]{0,79}", re.A)

R = TypeVar("R", bound=AnyRequest)


class Passed:
    """What requests asked for and was passed over: a line in the log once for each.

    strict: refuse it instead. May be used from several threads.
    """

    def __init__(self, strict: bool = False) -> None:
        self._strict, self._told = strict, set[str]()

    def field(self, name: str) -> None:
        """A field that nobody knows. ApiError if that is refused."""
        if self._strict:
            raise ApiError(400, f"{name[:80]}: unknown field", param=name[:80])
        self._tell(f"unknown field {name if _NAME.fullmatch(name) else 'of another form'}")

    def part(self, field: str, what: str) -> None:
        """A part of a field's value, as what of a schema is not followed."""
        if self._strict:
            raise ApiError(400, f"{field}: {what} is not supported", param=field)
        field = re.sub(r"\[\d+\]", "[]", field)
        what = what if what.isascii() and what.isprintable() else "a part of it"
        self._tell(f"{field}: {what}")

    def _tell(self, what: str) -> None:
        if what not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(what)
            log.info("passed over: %s", what)


def parse(body: bytes, kind: type[R], passed: Passed) -> R:
    """A request of this kind from bytes of JSON. ApiError that names the field at fault."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        for name in sorted(fields.keys() - set(kind.__struct_fields__) - IGNORED):
            _check_other(name, bytes(fields[name]), passed)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError:  # maybe of what may be passed over
            values = msgspec.json.decode(body)
            known = {n: value for n, value in values.items() if n in kind.__struct_fields__}
            known = _known(known, _type_of(kind), "", passed)
            return msgspec.convert(known, kind, str_keys=True)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise json_error(error) from None


@functools.cache
def _type_of(kind: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(kind)


_fields: dict[type[msgspec.Struct], dict[str, inspect.Field]] = {}


def _fields_of(kind: inspect.StructType) -> dict[str, inspect.Field]:
    """{name in JSON: field}"""
    if kind.cls not in _fields:
        _fields[kind.cls] = {field.encode_name: field for field in kind.fields}
    return _fields[kind.cls]


def _check_other(name: str, value: bytes, passed: Passed) -> None:
    if value == b"null":
        return
    if name not in REFUSED:
        passed.field(name)
        return
    given = msgspec.json.decode(value)
    if not any(type(given) is type(v) and given == v for v in REFUSED[name]):
        raise ApiError(400, f"{name}: not supported by this server", param=name)


def _known(value: Any, kind: inspect.Type, where: str, passed: Passed) -> Any:
    """A value of JSON without the fields, of objects of a known form, that are null or unknown.

    Clients send back all fields of an answer, also those that came with their newest version.
    """
    if isinstance(kind, inspect.UnionType):
        kind = _branch(value, kind.types)
    if isinstance(kind, inspect.ListType) and isinstance(value, list):
        return [_known(entry, kind.item_type, f"{where}[]", passed) for entry in value]
    if not isinstance(kind, inspect.StructType) or not isinstance(value, dict):
        return value
    fields, kept = _fields_of(kind), {}
    for name, entry in value.items():
        path = f"{where}.{name}" if where else name
        if name in fields:
            if entry is not None or fields[name].required:
                kept[name] = _known(entry, fields[name].type, path, passed)
        elif name == kind.tag_field:
            kept[name] = entry
        elif entry is not None:
            passed.field(path)
    return kept


def _branch(value: Any, kinds: tuple[inspect.Type, ...]) -> inspect.Type:
    """The one of a union that a value is to be, by its JSON type and its tag."""
    for kind in kinds:
        if isinstance(value, list) and isinstance(kind, inspect.ListType):
            return kind
        if not isinstance(value, dict) or not isinstance(kind, inspect.StructType):
            continue
        if kind.tag_field is None or value.get(kind.tag_field) == kind.tag:
            return kind
    return inspect.AnyType()
