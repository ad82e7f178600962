"""The bounds of schemas, without a server: right values, and no mistake on what is no schema."""

import json
import random
import re

import pytest

from bitnet import GrammarError
from bitnet.generation.json_schema import (
    MAX_DEPTH,
    MAX_ENUM,
    MAX_INTEGER,
    MAX_PATTERN,
    prepared,
)

KEYWORDS = [
    "type", "properties", "items", "allOf", "anyOf", "oneOf", "$ref", "$defs", "multipleOf", "enum",
    "pattern", "patternProperties", "format", "const", "a", "additionalProperties", "required",
    "not",
]  # fmt: skip
ATOMS = [None, True, 0, -3, 7, 0.1, 1e-9, 1e300, 99_991, "#", "#/$defs/a", "#/$defs/a/items", "x"]


def fail(field, what):
    raise AssertionError(f"{field}: {what}")


def nested(levels):
    schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(("schema", "named"), [
    ({"enum": [1] * (MAX_ENUM + 1)}, "enum: 2001 entries"),
    ({"pattern": "a" * (MAX_PATTERN + 1)}, "pattern: 2049 characters"),
    ({"const": "a" * (64 << 10)}, "a schema of 65548 bytes"),
    (nested(MAX_DEPTH + 1), "schemas within schemas"),
    ({"multipleOf": 100_001}, "1e+05"),
    ({"multipleOf": -100_001}, "1e+05"),
    ({"multipleOf": 1.00001}, "1e+05"),
    ({"items": {"anyOf": [{"multipleOf": 317}], "multipleOf": 331}}, "1.049e+05"),
    ({"$ref": "#/items", "items": {"multipleOf": 0.317}, "multipleOf": 331}, "1.049e+05"),
])  # fmt: skip
def test_beyond_the_bounds(schema, named):
    with pytest.raises(GrammarError, match=re.escape(named)) as error:
        prepared(schema, "text.format", fail)
    assert error.value.field == "text.format"


@pytest.mark.parametrize("schema", [
    {}, {"enum": [1] * MAX_ENUM}, {"pattern": "a" * MAX_PATTERN}, nested(MAX_DEPTH),
    {"multipleOf": 100_000}, {"multipleOf": 1e-9},
    {"multipleOf": 1e-9, "allOf": [{"multipleOf": 7}]},
    {"properties": {"a": {"multipleOf": 317}, "b": {"multipleOf": 331}},
     "additionalProperties": {}},
    {"const": {"pattern": "a" * (MAX_PATTERN + 1), "format": "path"}},
    {"properties": {"pattern": {"const": 1}, "multipleOf": {}, "format": {}},
     "additionalProperties": True},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
])  # fmt: skip
def test_within_the_bounds(schema):
    assert prepared(schema, "x", fail) == schema


def test_what_is_passed_over_is_told():
    told = []
    schema = {"title": "x", "type": "object", "required": None, "properties": {
        "file": {"type": "string", "format": "path", "description": "where"},
        "to": {"type": "string", "format": "email", "pattern": "^(?!\\.)[a-z]+@"},
        "set": {"type": "array", "uniqueItems": True}, "list": {"uniqueItems": False},
        "map": {"propertyNames": {"pattern": "a"}, "additionalProperties": {"not": {"const": 1}}},
        "title": {"default": None, "const": None},
        "one": {"oneOf": [{}, {}]}, "own": {"oneOf": [{}, {}], "discriminator": {}},
    }, "unevaluatedProperties": False}  # fmt: skip
    before = json.dumps(schema)
    found = prepared(schema, "f", lambda field, what: told.append((field, what)))
    assert found == {"type": "object", "properties": {
        "file": {"type": "string"}, "to": {"type": "string", "format": "email"},
        "set": {"type": "array"}, "list": {}, "map": {"additionalProperties": {}},
        "title": {"const": None}, "one": {"oneOf": [{}, {}]},
        "own": {"oneOf": [{}, {}], "discriminator": {}},
    }, "additionalProperties": False}  # fmt: skip
    assert json.dumps(schema) == before
    names = ["format path", "pattern with look-ahead beside a format", "uniqueItems"]
    names += ["propertyNames", "oneOf, but as anyOf,", "not"]
    assert told == [("f", f"the schema's {name}") for name in names]


@pytest.mark.parametrize(("schema", "reason"), [
    (False, "false, which nothing follows"),
    ({"properties": {"a": {"items": {"properties": {"b": {"pattern": "(?=a)"}}}}}},
     "property 'a.b': pattern: look-ahead and look-behind are not supported"),
    ({"pattern": "a(?<!b)"}, "pattern: look-ahead"),
    ({"patternProperties": {"^(?!a)": {}}}, "pattern: look-ahead"),
    ({"properties": {"a": {"contains": {}}}}, "property 'a': contains: not supported"),
    ({"if": {}, "then": {}}, ": not supported"),
    ({"properties": 5}, "properties: an object is needed"),
    ({"properties": {"a": {"properties": {"b": "x"}}}}, "property 'a.b': str (a JSON schema"),
    ({"const": "\ud800"}, "half a surrogate pair"),
    ({"items": {"required": "a"}}, "required: a list is needed"),
    ({"anyOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, "unevaluated"),
])  # fmt: skip
def test_what_is_refused_by_name(schema, reason):
    with pytest.raises(GrammarError, match=re.escape(reason)):
        prepared(schema, "f", fail)


@pytest.mark.parametrize(
    "pattern", [r"\(?!a", r"[(?!]", r"(?:a)", r"(?<name>a)", r"[\](?=]", "(?i)a"]
)
def test_what_is_no_look_around(pattern):
    assert prepared({"pattern": pattern}, "f", fail) == {"pattern": pattern}


A, B = ({"type": "object", "properties": {name: {"type": "string"}}} for name in "ab")
CLOSED = {"additionalProperties": False}


@pytest.mark.parametrize(("schema", "expected"), [
    (A, A | CLOSED),
    ({"type": "object"}, {"type": "object"}),
    (A | {"additionalProperties": True}, A | {"additionalProperties": True}),
    (A | {"patternProperties": {"b": {}}}, A | {"patternProperties": {"b": {}}}),
    (A | {"required": ["b"]}, A | {"required": ["b"]}),  # closed, nothing could follow it
    ({"items": A}, {"items": A | CLOSED}),
    ({"anyOf": [A, B, {"type": "null"}]}, {"anyOf": [A | CLOSED, B | CLOSED, {"type": "null"}]}),
    (A | {"anyOf": [{"required": ["a"]}, {}]},
     A | CLOSED | {"anyOf": [{"required": ["a"]}, {}]}),
    ({"allOf": [A]}, {"allOf": [A | CLOSED]}),
    ({"allOf": [A, B]},
     {"allOf": [A, B], "properties": {"a": True, "b": True}} | CLOSED),
    (A | {"allOf": [B | {"additionalProperties": {}}]},
     A | {"allOf": [B | {"additionalProperties": {}}]}),
    ({"$defs": {"a": A}, "$ref": "#/$defs/a"}, {"$defs": {"a": A | CLOSED}, "$ref": "#/$defs/a"}),
    ({"$defs": {"a~/": A}, "properties": {"c": {"allOf": [{"$ref": "#/$defs/a~0~1"}, B]}}},
     {"$defs": {"a~/": A}, "properties": {"c": {
         "allOf": [{"$ref": "#/$defs/a~0~1"}, B], "properties": {"a": True, "b": True}} | CLOSED,
     }} | CLOSED),
])  # fmt: skip
def test_objects_are_closed_where_the_schema_does_not_say(schema, expected):
    assert prepared(schema, "f", fail) == expected


@pytest.mark.parametrize(("schema", "bounds"), [
    ({"type": "integer"}, (-MAX_INTEGER, MAX_INTEGER)),
    ({"type": ["integer", "null"], "minimum": 0}, (0, MAX_INTEGER)),
    ({"type": "integer", "exclusiveMaximum": 5}, (-MAX_INTEGER, None)),
    ({"type": "integer", "enum": [2**60]}, (None, None)),
    ({"type": ["integer", "number"]}, (None, None)), ({"type": "number"}, (None, None)),
    ({"type": "integer", "multipleOf": 2}, (None, None)), ({"type": [[]]}, (None, None)),
])  # fmt: skip
def test_integers_end(schema, bounds):
    found = prepared(schema, "f", fail)
    assert (found.get("minimum"), found.get("maximum")) == bounds


def test_many_references_to_one_that_is_composed():
    every = {"allOf": [{"properties": {str(i): {}}} for i in range(2000)]}
    many = {
        "$defs": {"a": every},
        "properties": {str(i): {"$ref": "#/$defs/a"} for i in range(2000)},
    }
    with pytest.raises(GrammarError, match="too many schemas that hold together"):
        prepared(many, "f", fail)


def some_json(rng, depth):
    kind = rng.randrange(4) if depth else 0
    if kind < 2:
        return rng.choice(ATOMS)
    if kind == 2:
        return [some_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    names = rng.choices(KEYWORDS, k=rng.randrange(1, 6))
    return {name: some_json(rng, depth - 1) for name in names}


def test_what_is_no_schema_is_no_mistake_of_ours():
    rng = random.Random(1)
    refused = 0
    for _ in range(5000):
        schema = {name: some_json(rng, 4) for name in rng.choices(KEYWORDS, k=5)}
        try:
            prepared(schema, "x", lambda field, what: None)
        except GrammarError:
            refused += 1
    assert 0 < refused < 5000
