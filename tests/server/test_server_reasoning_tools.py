"""Reasoning in replies that may call tools: the grammar of calls begins behind it.

The bundled model thinks nothing, and ends no thought. So it is made to write a text of ours, token
by token, each of which the grammar has to allow.
"""

import asyncio
import json

import numpy as np
import pytest
from server.test_server_asgi import call
from support.server_process import USER

import bitnet
from bitnet.generation.grammar import Constraint, Grammars
from bitnet.server import Options, asgi, tool_grammar
from bitnet.server.schema import Function
from bitnet.text.tool_forms import FALCON, LLAMA3, OURS, QWEN3, QWEN35

llguidance = pytest.importorskip("llguidance")

OPENS = (  # the reply begins within thoughts, unless the client switches them off
    "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
)
MAY = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if enable_thinking %}.{% endif %}"
CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
THOUGHT = "What is the <tool_call> for?"
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}}}
CHAT = {"messages": USER, "tools": [{"type": "function", "function": NOW}], "max_tokens": 200}


class Server:
    """The application in this process, around a model with this template."""

    def __init__(self, template, options):
        self.model = bitnet.load(threads=1, slots=2, chat_template=template)
        self.begin = "" if template == OPENS else "<think>\n"  # of thoughts
        self._app = asgi(self.model, options)
        self._loop, self._lifespan = asyncio.new_event_loop(), self._app.lifespan()

    def __enter__(self):
        self._loop.run_until_complete(self._lifespan.__aenter__())
        return self

    def __exit__(self, *_):
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self._loop.close()
        self.model.close()

    def ask(self, path, body):
        answer = self._loop.run_until_complete(call(self._app, "POST", path, body))
        assert answer.status == 200, answer.body
        return answer


@pytest.fixture(scope="module", params=[OPENS, MAY], ids=["opens", "may"])
def server(request):
    with Server(request.param, Options()) as server:
        yield server


@pytest.fixture
def write(monkeypatch):
    """Have every reply be this text, if the grammar allows it."""

    allowed = Constraint.allowed

    def script(server, text):
        tokenizer = server.model.tokenizer
        ids = [*tokenizer.encode(text, add_bos=False), tokenizer.eos_ids[0]]

        def only(self):
            mask = allowed(self)
            at = self.__dict__.setdefault("at", 0)
            self.at += 1
            if at >= len(ids) or not mask[ids[at]]:
                raise ValueError(f"not allowed: {text!r}, token {at}")
            one = np.zeros_like(mask)
            one[ids[at]] = True
            return one

        monkeypatch.setattr(Constraint, "allowed", only)

    return script


def deltas(answer):
    lines = [line for line in answer.body.decode().split("\n\n") if line.startswith("data: {")]
    return [json.loads(line[6:])["choices"][0] for line in lines]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": NOW}])
def test_a_call_behind_thoughts(server, write, choice):
    write(server, f"{server.begin}{THOUGHT}\n</think>\n\n{CALL}")
    body = CHAT | {"tool_choice": choice}
    reply = server.ask("/v1/chat/completions", body).json["choices"][0]
    said = reply["message"]
    assert reply["finish_reason"] == "tool_calls" and said["content"] is None
    assert said["reasoning_content"] == THOUGHT
    assert said["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    stream = deltas(server.ask("/v1/chat/completions", body | {"stream": True}))
    thought = "".join(one["delta"].get("reasoning_content", "") for one in stream)
    calls = [one for d in stream for one in d["delta"].get("tool_calls", ())]
    assert thought == THOUGHT and stream[-1]["finish_reason"] == "tool_calls"
    assert calls[0]["function"]["name"] == "now"
    assert "".join(one["function"]["arguments"] for one in calls) == "{}"


def test_an_answer_behind_thoughts_and_none(server, write):
    write(server, f"{server.begin}{THOUGHT}</think>\n\nIt is late.")
    said = server.ask("/v1/chat/completions", CHAT).json["choices"][0]["message"]
    assert (said["reasoning_content"], said["content"]) == (THOUGHT, "It is late.")
    assert "tool_calls" not in said
    silent = {"chat_template_kwargs": {"enable_thinking": False}}
    with Server(OPENS, Options(reasoning_format="none")) as none:
        for one, more in ((server, silent), (server, {"reasoning_format": "none"}), (none, {})):
            write(one, CALL)
            said = one.ask("/v1/chat/completions", CHAT | more).json["choices"][0]["message"]
            assert said["tool_calls"] and "reasoning_content" not in said


def test_an_answer_by_a_schema_behind_thoughts(server, write):
    shape = {"type": "json_schema", "json_schema": {"schema": {"const": "late"}}}
    write(server, f'{server.begin}{THOUGHT}</think>\n"late"')
    said = server.ask("/v1/chat/completions", CHAT | {"response_format": shape}).json
    said = said["choices"][0]["message"]
    assert (said["reasoning_content"], said["content"]) == (THOUGHT, '"late"')


def test_the_other_protocols(server, write):
    write(server, f"{server.begin}{THOUGHT}</think>\n{CALL}")
    body = {"input": "x", "tools": [NOW | {"type": "function"}], "max_output_tokens": 200}
    items = server.ask("/v1/responses", body).json["output"]
    assert [item["type"] for item in items] == ["reasoning", "function_call"]
    assert items[0]["content"][0]["text"] == THOUGHT
    tool = {"name": "now", "input_schema": NOW["parameters"]}
    body = {"messages": USER, "tools": [tool], "max_tokens": 200}
    found = server.ask("/v1/messages", body).json
    assert [block["type"] for block in found["content"]] == ["thinking", "tool_use"]
    assert found["content"][0]["thinking"] == THOUGHT and found["stop_reason"] == "tool_use"


@pytest.fixture(scope="module")
def grammars(model):
    grammars = Grammars(model.tokenizer, model.config.vocab_size, model.tokenizer.eos_ids)
    yield grammars
    grammars.close()


def follows(model, make, text):
    """Whether a text is whole by a grammar."""
    constraint = make()
    for token_id in [*model.tokenizer.encode(text, add_bos=False), model.tokenizer.eos_ids[0]]:
        if not constraint.allowed()[token_id]:
            return False
        constraint.accept(token_id)
    return True


@pytest.mark.parametrize("form", [OURS, QWEN3, FALCON, LLAMA3, QWEN35], ids=lambda form: form.name)
def test_what_a_grammar_with_thoughts_takes(model, grammars, form):
    function = Function(name="now", parameters=NOW["parameters"])
    arguments = "</function>" if form.key is None else "{}}"
    written = f"{form.before}{form.head('now')}{arguments}{form.after}"
    may, inside = tool_grammar.MAY_THINK, tool_grammar.THINKS
    for text, thoughts, where_it_may_call, where_it_must in (
        (written, None, True, True),
        ("late", None, True, False),
        (written, may, True, True),
        ("late", may, True, False),
        (f"<think>a{form.mark}b</think>{written}", may, True, True),
        (f"<think></think> \n{written}", may, True, True),
        (f"<think></think>     {written}", may, form.has_text, False),
        ("<think>a</think>late", may, True, False),
        (f"<think>a{written}", may, False, False),
        ("<think>a", may, False, False),
        (f"a{form.mark}b</think>\n\n{written}", inside, True, True),
        (f"</think>{written}", inside, True, True),
        ("a</think>late", inside, True, False),
        ("late", inside, False, False),
        (written, inside, False, False),
        (f"a</think>{form.before}x", inside, not form.has_text and not form.before, False),
    ):
        for must_call, expected in ((False, where_it_may_call), (True, where_it_must)):
            make = tool_grammar.compile_reply(
                grammars, form, [(0, function)], 2, must_call, lambda *_: None, None, thoughts
            )
            assert follows(model, make, text) == expected, (text, thoughts, must_call)
