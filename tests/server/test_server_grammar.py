"""JSON by schema over HTTP: every reply follows it, and what cannot be followed is refused."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.server_process import NO_END, USER, ServerProcess

from bitnet import GrammarError
from bitnet.generation import grammar_check
from bitnet.generation.grammar_check import GrammarCheck

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


@pytest.mark.parametrize("name", ["schema", "value"])  # llama.cpp's, the Hugging Face hub's
def test_a_schema_inside_json_object(server, name):
    shape = {"type": "json_object", name: PERSON}
    answer = server.chat(response_format=shape, max_tokens=200, seed=1)
    assert json.loads(answer.json["choices"][0]["message"]["content"]).keys() == {
        *PERSON["required"]
    }
    shape[name] = {"type": "nonsense"}
    assert server.chat(response_format=shape).json["error"]["param"] == "response_format"
    both = {"type": "json_object", "schema": PERSON, "value": {}}
    assert server.chat(response_format=both).status == 400


def test_nulls_in_a_schema_stay(server):
    shape = by_schema({"const": {"a": None}})
    shape["json_schema"]["new"] = None  # a field that nobody knows yet
    found = server.chat(response_format=shape, max_tokens=50).json
    assert json.loads(found["choices"][0]["message"]["content"]) == {"a": None}


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
    {"contains": {"type": "string"}},
    {"x-guidance": {"lenient": True}, "contains": {"type": "string"}},
    {"enum": ["x" * 70_000]},
    {"enum": []},
    False,
    {"type": "integer", "multipleOf": 10000019},
    {"type": "integer", "multipleOf": 1e300},
    {"type": "integer", "multipleOf": 10007, "allOf": [{"multipleOf": 10009}]},
    {"$defs": {"a": {"multipleOf": 499}}, "type": "number",
     "anyOf": [{"allOf": [{"$ref": "#/$defs/a"}]}], "multipleOf": 503},
    {"properties": {"a": {"items": [{"enum": list(map(str, range(2001)))}]}}},
    {"type": "string", "pattern": "a" * 2049},
    {"patternProperties": {"a" * 2049: {}}},
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
    {"type": "number", "multipleOf": 1e-9},
    {"type": "number", "multipleOf": 0.01, "allOf": [{"multipleOf": 0.05}]},
    {"type": "integer", "multipleOf": 86400},
    {"properties": {"a": {"type": "string", "format": "path"}, "format": {"const": "password"}}},
    True,
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


def test_a_regular_expression_that_is_refused_says_why(server):
    answer = server.chat(response_format=by_schema({"type": "string", "pattern": "^(?!a)"}))
    assert "look-ahead" in answer.json["error"]["message"]


def test_references_without_end(server):
    names = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(300)}
    schema = {"$defs": names, "$ref": "#/$defs/a0"}
    assert "references in a row" in str(refusal_of(server, schema))


# ----------------------------------------------------------- what no bound sees, in its own process
# Their intersection takes hours.
ENDLESS = {"type": "string", "allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(50)]}


def refusal_of(server, schema):
    answer = server.chat(response_format=by_schema(schema))
    assert answer.status == 400 and answer.json["error"]["param"] == "response_format"
    return answer.json["error"]["message"]


def children(server):
    """The processes in which it tries schemas."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    pids = {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    return {pid for pid in pids if b"grammar_compiler" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def an_endless_schema(server):
    """A request whose schema is being tried; gives a list that gets its outcome."""
    outcome = []

    def ask():
        try:
            outcome.append(server.chat(response_format=by_schema(ENDLESS)))
        except OSError as error:
            outcome.append(error)

    before = children(server)
    thread = threading.Thread(target=ask)
    thread.start()
    while not before and not children(server):  # it is started by the first schema
        time.sleep(0.01)
    time.sleep(0.3)
    yield outcome
    thread.join()


def test_an_endless_schema_is_refused_and_others_are_served_meanwhile(server):
    with an_endless_schema(server) as outcome:
        assert server.chat().status == 200 and server.get("/health").status == 200
        assert server.post("/tokenize", {"prompt": "x"}).status == 200
        assert not outcome
    assert outcome[0].status == 400 and "to compile" in outcome[0].json["error"]["message"]
    assert server.chat(response_format=by_schema({"const": 1})).status == 200
    called = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"a": ENDLESS}}}}  # fmt: skip
    answer = server.chat(tools=[called])
    assert answer.status == 400 and answer.json["error"]["param"] == "tools"


def test_many_endless_schemas_do_not_keep_others_waiting(server):
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.chat, response_format=by_schema(ENDLESS)) for _ in range(8)]
        statuses = [one.result().status for one in asked]
    assert set(statuses) == {400, 503}  # one after the other they would take 16 s
    assert server.chat(response_format=by_schema({"const": 1})).status == 200


def test_a_client_that_leaves_while_it_waits_for_another_schema(server):
    with an_endless_schema(server) as outcome:
        before = server.metrics()
        body = json.dumps({"messages": USER, "response_format": by_schema({"const": 9})}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        )
        with server.send(head % len(body) + body):
            while server.metrics()["bitnet_sequences"] < 2:
                assert not outcome
        while (after := server.metrics())["bitnet_sequences"] > 1:
            assert not outcome
        assert after["bitnet_cancelled_total"] == before["bitnet_cancelled_total"] + 1


def test_the_process_of_schemas(server):
    assert server.chat(response_format=by_schema({"const": 2})).status == 200
    (pid,) = children(server)
    assert server.chat(response_format=by_schema({"const": 3})).status == 200
    assert children(server) == {pid}  # kept warm
    held = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    assert not any(name.startswith("socket") for name in held) and len(held) == 3
    (line,) = re.findall(r"Max address space +(\d+)", Path(f"/proc/{pid}/limits").read_text())
    assert int(line) < 1 << 30
    os.kill(pid, signal.SIGKILL)
    assert server.chat(response_format=by_schema({"const": 4})).status == 200


def test_a_schema_that_was_tried_is_not_tried_again(server):
    assert server.chat(response_format=by_schema({"const": 5})).status == 200
    for pid in children(server):
        os.kill(pid, signal.SIGSTOP)  # it answers nothing
    assert server.chat(response_format=by_schema({"const": 5})).status == 200
    for pid in children(server):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_while_a_schema_is_tried(number):
    with ServerProcess() as server, an_endless_schema(server) as outcome:
        (pid,) = children(server)
        status, log = server.stop(number)
        assert status == (0 if number == signal.SIGTERM else -number), log
        end = time.monotonic() + 10
        while is_alive(pid):
            assert time.monotonic() < end, "it goes on without its server"
            time.sleep(0.02)
    assert number == signal.SIGKILL or outcome[0].status == 400  # it drained


def test_a_second_signal_ends_it_at_once():
    with ServerProcess() as server, an_endless_schema(server):
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.stop()[0] == 0


@pytest.mark.parametrize(("name", "value", "message"), [
    ("MAX_BYTES", 1 << 20, "takes more than 1 MiB of memory"),
    ("SECONDS", 0.001, "takes longer than 0.001 s"),
])  # fmt: skip
def test_what_a_schema_may_take(monkeypatch, name, value, message):
    monkeypatch.setattr(grammar_check, name, value)
    check, schema = GrammarCheck(), json.dumps({"type": "integer", "multipleOf": 200_003})
    for _ in range(2):
        with pytest.raises(GrammarError, match=message) as error:
            check.check("grammar_from_json_schema", schema, {}, "response_format")
        assert error.value.field == "response_format"


def test_where_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="no process can be started"):
        GrammarCheck().check("grammar_from_json_schema", "{}", {}, "response_format")


def test_a_bias_against_the_end_is_an_error_and_no_free_text(server):
    answer = server.chat(response_format=by_schema({"const": 1}), logit_bias=NO_END, max_tokens=30)
    if answer.status == 200:  # -100 is only a bias: the end comes all the same
        assert answer.json["choices"][0]["message"]["content"] == "1"
    else:
        assert answer.status == 400


def test_texts_too(server):
    fields = {"prompt": "x", "response_format": by_schema(PERSON), "max_tokens": 200}
    answer = server.post("/v1/completions", fields)
    assert json.loads(answer.json["choices"][0]["text"]).keys() == set(PERSON["required"])


def test_without_the_extra():
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from bitnet.generation.grammar import Grammars\n"
        'try: Grammars(None, 1, [0]).of_schema({}, "response_format")\n'
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'bitnet-engine[grammar]'" in done.stdout
