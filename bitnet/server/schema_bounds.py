"""What a JSON schema may hold before anybody tries to compile it.

These bounds give the usual excesses a quick answer that names them; what they do not see, such as
combinations of patterns, has the time and memory of grammar_check.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import msgspec

from .errors import ApiError
from .schema import JSONSchema

MAX_LENGTH = 64 << 10  # bytes of JSON: others wait while a schema is compiled
MAX_DEPTH = 100  # levels of schemas in schemas, and references in a row: the library allows 128
MAX_ENUM = 2000  # entries of an enum: items that the library's parser may have at one place
MAX_PATTERN = 2048  # characters of a regular expression
# Multiples of N are found by an automaton of N states: 0.5 s and 50 MB for 100,000.
MAX_MULTIPLE = 100_000

# What OpenAPI and pydantic say of strings without restricting them; the library refuses formats
# that it does not know.
IDLE_FORMATS = ("binary", "password", "path", "file-path", "directory-path")

_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"const", "enum", "default", "examples", "required", "x-guidance"}  # with no schemas inside
ONE = Fraction(1)


def bounded(schema: JSONSchema, field: str) -> dict[str, Any]:
    """A copy of a schema with keywords and without idle formats. ApiError beyond the bounds.

    field: of the request, which errors name.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    text = msgspec.json.encode(schema)
    if len(text) > MAX_LENGTH:
        raise _error(field, f"a schema of {len(text)} bytes (at most {MAX_LENGTH})")
    schema = msgspec.json.decode(text, type=dict[str, Any])
    multiples = _Multiples(schema, field)
    level, depth = [schema], 0
    while level:
        if depth > MAX_DEPTH:
            raise _error(field, f"schemas within schemas (at most {MAX_DEPTH} levels)")
        for one in level:
            _check_one(one, field)
            multiples.of(one)
            if one.get("format") in IDLE_FORMATS:
                del one["format"]
        level = [inner for one in level for inner in _inside(one)]
        depth += 1
    return schema


def _check_one(schema: dict[str, Any], field: str) -> None:
    """The bounds of one schema without those inside."""
    enum = schema.get("enum")
    if isinstance(enum, list) and len(enum) > MAX_ENUM:
        raise _error(field, f"enum: {len(enum)} entries (at most {MAX_ENUM})")
    patterns = schema.get("patternProperties")
    for text in (schema.get("pattern"), *(patterns if isinstance(patterns, dict) else ())):
        if isinstance(text, str) and len(text) > MAX_PATTERN:
            raise _error(field, f"pattern: {len(text)} characters (at most {MAX_PATTERN})")


def _inside(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schemas directly in a schema."""
    for keyword, value in schema.items():
        if keyword in _DATA:
            continue
        if keyword in _SCHEMAS and isinstance(value, dict):
            value = list(value.values())
        yield from _schemas(value if isinstance(value, list) else [value])


class _Multiples:
    """The least common multiple of every multipleOf that holds for the same value."""

    def __init__(self, root: dict[str, Any], field: str) -> None:
        self._root, self._field = root, field
        self._found: dict[int, Fraction] = {}  # by the schema's id

    def of(self, schema: dict[str, Any], depth: int = 0) -> Fraction:
        """Of one schema. ApiError beyond the bounds."""
        if depth > MAX_DEPTH:
            raise _error(self._field, f"references in a row (at most {MAX_DEPTH})")
        if id(schema) in self._found:
            return self._found[id(schema)]
        self._found[id(schema)] = ONE  # for one that refers to itself
        total = _own_multiple(schema)
        for other in self._at_the_same_place(schema):
            found = self.of(other, depth + 1)
            numerator = math.lcm(total.numerator, found.numerator)
            total = Fraction(numerator, math.gcd(total.denominator, found.denominator))
            if total.numerator > MAX_MULTIPLE:
                break
        if total.numerator > MAX_MULTIPLE:
            found_one = f"{total.numerator:.4g}" if total.numerator < 1e300 else "beyond 1e300"
            what = f"multipleOf, with those of allOf, anyOf, oneOf and $ref: {found_one}"
            raise _error(self._field, f"{what} (at most {MAX_MULTIPLE})")
        self._found[id(schema)] = total
        return total

    def _at_the_same_place(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for keyword in ("allOf", "anyOf", "oneOf"):
            others = schema.get(keyword)
            yield from _schemas(others if isinstance(others, list) else ())
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            target: Any = self._root
            for name in reference.split("/")[1:]:
                target = target.get(name) if isinstance(target, dict) else None
            yield from _schemas([target])


def _own_multiple(schema: dict[str, Any]) -> Fraction:
    """multipleOf as it was written: 0.1 is a tenth."""
    value = schema.get("multipleOf")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return abs(Fraction(repr(value))) or ONE if is_number else ONE


def _schemas(values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict))


def _error(field: str, text: str) -> ApiError:
    return ApiError(400, f"{field}: {text}", param=field)
