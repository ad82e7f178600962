"""A JSON schema as clients write it, made one that the grammar library follows, or refused by name.

The bounds give the usual excesses a quick answer that names them; what they do not see, such as
combinations of patterns, has the time and memory of grammar_check. Annotations go. What the library
cannot follow is told to the caller where a schema of pydantic or zod has it as a rule, and refused
where it has not.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

from ..errors import GrammarError

JSONSchema = dict[str, Any] | bool
Note = Callable[[str, str], None]  # told of (field, what is not followed)

MAX_LENGTH = 64 << 10  # bytes of JSON: others wait while a schema is compiled
MAX_DEPTH = 100  # levels of schemas in schemas, and references in a row: the library allows 128
MAX_ENUM = 2000  # entries of an enum: items that the library's parser may have at one place
MAX_PATTERN = 2048  # characters of a regular expression
# Multiples of N are found by an automaton of N states: 0.5 s and 50 MB for 100,000.
MAX_MULTIPLE = 100_000
MAX_INTEGER = 2**53 - 1  # of integers without bounds: what JSON's readers agree on (RFC 8259, 6)
MAX_SCHEMAS = 32 << 10  # schemas in a schema: MAX_LENGTH has room for 22,000 of "{}"
MAX_VISITS = 1 << 17  # schemas looked at to learn which hold together: 0.1 s

# Formats that the library follows. Others are annotations, as JSON Schema has it (2020-12, 7.2.1).
FORMATS = {
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri",
    "uuid",
}  # fmt: skip
# Keywords that the library does not know and that pydantic and zod write: of sets, of records.
LENIENT = ("not", "propertyNames", "uniqueItems")
UNFOLLOWED = (
    "$dynamicRef", "$recursiveRef", "contains", "dependentRequired", "dependentSchemas", "else",
    "if", "maxContains", "minContains", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
ANNOTATIONS = (
    "$comment", "default", "deprecated", "description", "example", "examples", "readOnly", "title",
    "writeOnly",
)  # fmt: skip

_KINDS = (
    ("properties", dict, "an object"), ("patternProperties", dict, "an object"),
    ("required", list, "a list"), ("enum", list, "a list"),
)  # fmt: skip
_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"const", "enum", "default", "examples", "required", "x-guidance"}  # with no schemas inside
_OTHERS = ("additionalProperties", "patternProperties")  # what says which others an object may have
_LOOK_AROUND = re.compile(r"\\.|\[(?:\\.|[^\]\\])*+\]|(\(\?<?[=!])", re.S)
ONE = Fraction(1)

Schema = dict[str, Any]
_Error = Callable[[tuple[str, ...], str], GrammarError]  # of (names of properties, what is wrong)


def prepared(schema: JSONSchema, field: str, note: Note, about: str = "") -> Schema:
    """A copy of a schema for the grammar library. GrammarError for what it cannot be.

    field: of the request, which errors name. note: is told what is passed over; it may raise.
    about: whose schema it is, for messages.

    Objects whose properties are listed have no others, unless the schema says that they may;
    integers that have no bounds get MAX_INTEGER.
    """
    if schema is False:
        raise GrammarError(field, f"{about}false, which nothing follows".strip())
    copy: Schema = {} if schema is True else json.loads(json.dumps(schema))
    if not isinstance(copy, dict):
        raise GrammarError(field, f"{about}{type(schema).__name__} (a JSON schema: an object)")
    try:
        _Preparation(copy, field, note, about).run()
    except RecursionError:
        raise GrammarError(field, f"{about}nested too deeply") from None
    try:
        n_bytes = len(json.dumps(copy, ensure_ascii=False, separators=(",", ":")).encode())
    except UnicodeEncodeError:
        reason = f"{about}half a surrogate pair, not valid Unicode"
        raise GrammarError(field, reason) from None
    if n_bytes > MAX_LENGTH:
        raise GrammarError(field, f"{about}a schema of {n_bytes} bytes (at most {MAX_LENGTH})")
    return copy


class _Preparation:
    """The work of prepared on a copy, which it changes."""

    def __init__(self, root: Schema, field: str, note: Note, about: str) -> None:
        self._root, self._field, self._note, self._about = root, field, note, about

    def run(self) -> None:
        multiples = _Multiples(self._root, self._error)
        everything: list[Schema] = []
        level: list[tuple[Schema, tuple[str, ...]]] = [(self._root, ())]
        depth = 0
        while level:
            if depth > MAX_DEPTH:
                raise self._error((), f"schemas within schemas (at most {MAX_DEPTH} levels)")
            for one, path in level:
                self._clean(one, path)
                multiples.of(one)
                everything.append(one)
            if len(everything) > MAX_SCHEMAS:
                raise self._error((), f"more than {MAX_SCHEMAS} schemas in a schema")
            level = [entry for one, path in level for entry in _inside(one, path)]
            depth += 1
        _Closing(self._root, everything, self._error).run()

    def _error(self, path: tuple[str, ...], text: str) -> GrammarError:
        where = f"property {'.'.join(path)[:120]!r}: " if path else ""
        return GrammarError(self._field, f"{self._about}{where}{text}")

    def _clean(self, schema: Schema, path: tuple[str, ...]) -> None:
        """One schema without those inside: its bounds, and what goes."""
        for name in [n for n, value in schema.items() if value is None and n != "const"]:
            del schema[name]
        for name in ANNOTATIONS:
            schema.pop(name, None)
        if isinstance(schema.get("required"), bool):  # of a property, as the third draft had it
            del schema["required"]
            self._note(self._field, "the schema's required of a property itself")
        self._check_bounds(schema, path)
        if schema.get("unevaluatedProperties") is False and not _composed(schema):
            del schema["unevaluatedProperties"]
            schema.setdefault("additionalProperties", False)
        for name in UNFOLLOWED:
            if name in schema:
                raise self._error(path, f"{name}: not supported in a schema")
        for name in LENIENT:
            if name in schema and schema.pop(name) is not False:
                self._note(self._field, f"the schema's {name}")
        some = schema.get("oneOf")
        if isinstance(some, list) and len(some) > 1 and "discriminator" not in schema:
            self._note(self._field, "the schema's oneOf, but as anyOf,")
        text_format = schema.get("format")
        if isinstance(text_format, str) and text_format not in FORMATS:
            del schema["format"]
            self._note(self._field, f"the schema's format {text_format[:40]}")
        self._check_patterns(schema, path)
        _bound_integer(schema)

    def _check_bounds(self, schema: Schema, path: tuple[str, ...]) -> None:
        for name, kind, what in _KINDS:
            if not isinstance(schema.get(name, kind()), kind):
                raise self._error(path, f"{name}: {what} is needed")
        for name, value in schema.get("properties", {}).items():
            if not isinstance(value, dict | bool):
                found = type(value).__name__
                raise self._error((*path, name), f"{found} (a JSON schema: an object)")
        enum = schema.get("enum")
        if enum is not None and len(enum) > MAX_ENUM:
            raise self._error(path, f"enum: {len(enum)} entries (at most {MAX_ENUM})")
        for text in _patterns(schema):
            if len(text) > MAX_PATTERN:
                raise self._error(path, f"pattern: {len(text)} characters (at most {MAX_PATTERN})")

    def _check_patterns(self, schema: Schema, path: tuple[str, ...]) -> None:
        """Look-around, which no automaton has; zod writes it beside a format that says the same."""
        for text in _patterns(schema):
            if not any(found[1] for found in _LOOK_AROUND.finditer(text)):
                continue
            if text == schema.get("pattern") and "format" in schema:
                del schema["pattern"]
                self._note(self._field, "the schema's pattern with look-ahead beside a format")
                continue
            raise self._error(path, "pattern: look-ahead and look-behind are not supported")


def _bound_integer(schema: Schema) -> None:
    """Keep an integer without bounds within MAX_INTEGER: a model could write digits for ever."""
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    if "integer" not in types or "number" in types or schema.keys() & {"enum", "const"}:
        return
    if not schema.keys() & {"minimum", "exclusiveMinimum", "multipleOf"}:
        schema["minimum"] = -MAX_INTEGER
    if not schema.keys() & {"maximum", "exclusiveMaximum", "multipleOf"}:
        schema["maximum"] = MAX_INTEGER


def _patterns(schema: Schema) -> list[str]:
    keys = schema.get("patternProperties")
    texts = [schema.get("pattern"), *(keys if isinstance(keys, dict) else ())]
    return [text for text in texts if isinstance(text, str)]


def _inside(schema: Schema, path: tuple[str, ...]) -> Iterator[tuple[Schema, tuple[str, ...]]]:
    """Yield the schemas directly in a schema, and the names of properties that lead there."""
    for keyword, value in schema.items():
        if keyword in _DATA or keyword.startswith("x-"):  # extensions, which nobody follows
            continue
        if keyword == "properties" and isinstance(value, dict):
            yield from ((v, (*path, str(k))) for k, v in value.items() if isinstance(v, dict))
            continue
        if keyword in _SCHEMAS and isinstance(value, dict):
            value = list(value.values())
        found = _schemas(value if isinstance(value, list) else [value])
        yield from ((one, path) for one in found)


def _composed(schema: Schema) -> bool:
    return any(name in schema for name in ("allOf", "anyOf", "oneOf", "$ref"))


def _groups(schema: Schema, root: Schema) -> Iterator[list[Schema]]:
    """Yield lists of schemas of which each holds for the same value as this one does, or may."""
    every = schema.get("allOf")
    yield from ([one] for one in _schemas(every if isinstance(every, list) else ()))
    for keyword in ("anyOf", "oneOf"):
        some = schema.get(keyword)
        if isinstance(some, list):
            yield list(_schemas(some))
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        target: Any = root
        for name in reference.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        yield list(_schemas([target]))


class _Closing:
    """Objects whose properties are listed, and no word said of others, get none.

    A list may be in several schemas that hold together, by allOf, anyOf and $ref: then what they
    list is what there is, and the one around them says so, as each of them forbids the others'.
    """

    def __init__(self, root: Schema, everything: list[Schema], error: _Error) -> None:
        self._root, self._everything, self._error = root, everything, error
        self._n_visits = 0

    def run(self) -> None:
        composed, parts = set(), set()
        for one in self._everything:
            groups = [self._members(group) for group in _groups(one, self._root)]
            listing = [group for group in groups if any("properties" in part for part in group)]
            if len(listing) + ("properties" in one) > 1:
                composed.add(id(one))
                parts |= {id(part) for group in listing for part in group}
        for one in self._everything:
            if id(one) in parts:
                continue
            if id(one) in composed:
                self._close(one, self._members([one]))
            elif "properties" in one:
                self._close(one, [one])

    def _members(self, schemas: list[Schema]) -> list[Schema]:
        """These and all that hold for the same value."""
        found: dict[int, Schema] = {}
        waiting = list(schemas)
        while waiting:
            one = waiting.pop()
            if id(one) not in found:
                found[id(one)] = one
                waiting += [part for group in _groups(one, self._root) for part in group]
        self._n_visits += len(found)
        if self._n_visits > MAX_VISITS:
            raise self._error((), "too many schemas that hold together, by $ref, allOf and anyOf")
        return list(found.values())

    @staticmethod
    def _close(schema: Schema, members: list[Schema]) -> None:
        names: dict[str, Any] = {}
        required: set[str] = set()
        for one in members:
            if any(name in one for name in _OTHERS):
                return
            names |= dict.fromkeys(one.get("properties", {}), True)
            required |= {name for name in one.get("required", []) if isinstance(name, str)}
        if required <= names.keys():
            schema["properties"] = names | schema.get("properties", {})
            schema["additionalProperties"] = False


class _Multiples:
    """The least common multiple of every multipleOf that holds for the same value."""

    def __init__(self, root: Schema, error: _Error) -> None:
        self._root, self._error = root, error
        self._found: dict[int, Fraction] = {}  # by the schema's id

    def of(self, schema: Schema, depth: int = 0) -> Fraction:
        """Of one schema. GrammarError beyond the bounds."""
        if depth > MAX_DEPTH:
            raise self._error((), f"references in a row (at most {MAX_DEPTH})")
        if id(schema) in self._found:
            return self._found[id(schema)]
        self._found[id(schema)] = ONE  # for one that refers to itself
        total = _own_multiple(schema)
        for other in (part for group in _groups(schema, self._root) for part in group):
            found = self.of(other, depth + 1)
            numerator = math.lcm(total.numerator, found.numerator)
            total = Fraction(numerator, math.gcd(total.denominator, found.denominator))
            if total.numerator > MAX_MULTIPLE:
                break
        if total.numerator > MAX_MULTIPLE:
            found_one = f"{total.numerator:.4g}" if total.numerator < 1e300 else "beyond 1e300"
            what = f"multipleOf, with those of allOf, anyOf, oneOf and $ref: {found_one}"
            raise self._error((), f"{what} (at most {MAX_MULTIPLE})")
        self._found[id(schema)] = total
        return total


def _own_multiple(schema: Schema) -> Fraction:
    """multipleOf as it was written: 0.1 is a tenth."""
    value = schema.get("multipleOf")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return abs(Fraction(repr(value))) or ONE if is_number else ONE


def _schemas(values: Iterable[Any]) -> Iterator[Schema]:
    return (value for value in values if isinstance(value, dict))
