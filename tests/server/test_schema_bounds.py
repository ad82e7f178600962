"""The bounds of schemas, without a server: right values, and no mistake on what is no schema."""

import random

import pytest
from support import server_process  # noqa: F401  # skips without the server's extra

from bitnet.server.errors import ApiError
from bitnet.server.schema_bounds import IDLE_FORMATS, MAX_DEPTH, MAX_ENUM, MAX_PATTERN, bounded

KEYWORDS = [
    "type", "properties", "items", "allOf", "anyOf", "oneOf", "$ref", "$defs", "multipleOf", "enum",
    "pattern", "patternProperties", "format", "const", "a",
]  # fmt: skip
ATOMS = [None, True, 0, -3, 7, 0.1, 1e-9, 1e300, 99_991, "#", "#/$defs/a", "#/$defs/a/items", "x"]


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
    with pytest.raises(ApiError) as error:
        bounded(schema, "text.format")
    assert named in error.value.message and error.value.param == "text.format"


@pytest.mark.parametrize("schema", [
    {}, {"enum": [1] * MAX_ENUM}, {"pattern": "a" * MAX_PATTERN}, nested(MAX_DEPTH),
    {"multipleOf": 100_000}, {"multipleOf": 1e-9},
    {"multipleOf": 1e-9, "allOf": [{"multipleOf": 7}]},
    {"properties": {"a": {"multipleOf": 317}, "b": {"multipleOf": 331}}},
    {"const": {"pattern": "a" * (MAX_PATTERN + 1), "format": "path"}},
    {"properties": {"pattern": {"const": 1}, "multipleOf": {}, "format": {}}},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
])  # fmt: skip
def test_within_the_bounds(schema):
    assert bounded(schema, "x") == schema


def test_what_is_changed():
    assert bounded(True, "x") == {} and bounded(False, "x") == {"not": {}}
    schema = {"items": {"format": IDLE_FORMATS[0], "type": "string"}}
    assert bounded(schema, "x") == {"items": {"type": "string"}}
    assert schema["items"]["format"] == IDLE_FORMATS[0]  # the request's own is as it was


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
            bounded(schema, "x")
        except ApiError:
            refused += 1
    assert 0 < refused < 5000
