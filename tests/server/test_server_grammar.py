"""JSON by schema over HTTP: every reply follows it, and what cannot be followed is refused."""

import json
import subprocess
import sys
import time

import pytest
from support.server_process import NO_END, USER, ServerProcess

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "mother": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "mother"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 4) as one:
        yield one


def by_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


@pytest.mark.parametrize("sampling", [
    {"temperature": 0}, {"temperature": 3}, {"top_k": 5}, {"top_p": 0.9, "frequency_penalty": 1},
])  # fmt: skip
def test_replies_follow_the_schema(server, sampling):
    answer = server.chat(response_format=by_schema(PERSON), n=8, max_tokens=200, seed=1, **sampling)
    for choice in answer.json["choices"]:
        assert choice["finish_reason"] == "stop"
        found = json.loads(choice["message"]["content"])
        assert found.keys() == set(PERSON["required"])
        assert len(found["name"]) <= 12 and 0 <= found["age"] <= 120
        assert set(found["tags"]) <= {"a", "b"} and len(found["tags"]) <= 3
        assert found["mother"] in (None, True, False)


def test_any_object(server):
    answer = server.chat(response_format={"type": "json_object"}, n=8, max_tokens=300, seed=2)
    assert all(c["message"]["content"].startswith("{") for c in answer.json["choices"])
    end = server.post("/tokenize", {"prompt": "x}"}).json["tokens"][-1]
    fields = {"response_format": {"type": "json_object"}, "logit_bias": {str(end): 100}}
    assert server.chat(**fields).json["choices"][0]["message"]["content"] == "{}"


def test_the_stream_is_the_same(server):
    fields = {"messages": USER, "response_format": by_schema(PERSON), "seed": 3, "max_tokens": 200}
    chunks = server.chunks(**fields)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == server.chat(**fields).json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("schema", [
    {"type": "nonsense"},
    {"$ref": "http://127.0.0.1:1/x"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/nowhere"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(?=x)"},
    {"not": {"type": "string"}},
    {"x-guidance": {"lenient": True}, "not": {"type": "string"}},
    {"enum": ["x" * 70_000]},
    {"enum": []},
    False,
])  # fmt: skip
def test_schemas_that_are_refused(server, schema):
    answer = server.chat(response_format=by_schema(schema))
    assert answer.status == 400 and answer.json["error"]["param"] == "response_format"
    assert server.chat().status == 200


@pytest.mark.parametrize("schema", [
    {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
    {"type": "array", "minItems": 100_000, "items": {"type": "integer"}},
    {"enum": [f"{i:05}" * 2 for i in range(4000)]},
    {"type": "string", "pattern": "(.*a){30}b(.*c){30}"},
    {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"},
])  # fmt: skip
def test_schemas_that_take_much(server, schema):
    start = time.monotonic()
    answer = server.chat(response_format=by_schema(schema), max_tokens=20)
    assert answer.status in (200, 400)
    assert time.monotonic() - start < 3
    assert server.rss() < 400 << 20


def test_a_schema_of_great_depth(server):
    schema = {"type": "object"}
    for _ in range(120):
        schema = {"type": "object", "properties": {"a": schema}}
    assert server.chat(response_format=by_schema(schema)).status == 400


def test_a_bias_against_the_end_is_an_error_and_no_free_text(server):
    answer = server.chat(response_format=by_schema({"const": 1}), logit_bias=NO_END, max_tokens=30)
    if answer.status == 200:  # -100 is only a bias: the end comes all the same
        assert answer.json["choices"][0]["message"]["content"] == "1"
    else:
        assert answer.status == 400


def test_not_for_texts(server):
    answer = server.post("/v1/completions", {"prompt": "x", "response_format": by_schema(PERSON)})
    assert answer.status == 400 and answer.json["error"]["param"] == "response_format"


def test_without_the_extra():
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from bitnet.server.grammar import Grammars\n"
        'try: Grammars(None).of_schema({}, "response_format")\n'
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'bitnet-engine[grammar]'" in done.stdout
