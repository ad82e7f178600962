"""Reasoning and answer over HTTP, and values for a template: a real process, and the chunks."""

import itertools
import json

import pytest
from support.server_process import NO_END, USER, ServerProcess, openai_client, server_with_template

from bitnet.generation.request import Completion
from bitnet.server.openai_chunks import ChatChunks
from bitnet.server.worker import Event
from bitnet.text.tool_calls import CallReader

# The bundled model thinks nothing: its template begins what it thinks, or asks for less.
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}\n{% endfor %}{{ mood }}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
)
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_with_template(tmp_path_factory.mktemp("template"), TEMPLATE) as one:
        yield one


def message(answer):
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["message"]


def test_a_reply_that_begins_with_reasoning(server):
    options = {"seed": 3, "logit_bias": NO_END, "logprobs": True}
    whole = server.chat(reasoning_format="none", **options)
    thought = server.chat(**options)
    text = message(whole)["content"]
    assert "reasoning_content" not in message(whole) and text.strip()
    assert message(thought)["content"] == ""
    assert message(thought)["reasoning_content"] == text.strip()
    assert message(server.chat(reasoning_format="deepseek", **options)) == message(thought)
    for field in ("finish_reason", "logprobs"):
        assert thought.json["choices"][0][field] == whole.json["choices"][0][field]
    assert thought.json["choices"][0]["finish_reason"] == "length"
    used = [answer.json["usage"]["completion_tokens"] for answer in (whole, thought)]
    assert used == [8, 8]


def test_a_stream_says_what_a_whole_reply_says(server):
    options = {"seed": 3, "logit_bias": NO_END, "messages": USER, "n": 2}
    whole = server.chat(**options).json
    deltas = {0: [], 1: []}
    for chunk in server.chunks(**options):
        for choice in chunk["choices"]:
            deltas[choice["index"]].append(choice["delta"])
    for choice in whole["choices"]:
        found = deltas[choice["index"]]
        thought = "".join(delta.get("reasoning_content", "") for delta in found)
        assert thought == choice["message"]["reasoning_content"] != ""
        assert "".join(delta.get("content", "") for delta in found) == ""


def test_a_stop_is_met_in_reasoning_as_well(server):
    thought = message(server.chat(seed=3, logit_bias=NO_END, max_tokens=20))["reasoning_content"]
    stop = thought[4:7]
    answer = server.chat(seed=3, logit_bias=NO_END, max_tokens=20, stop=stop)
    cut = thought[: thought.index(stop)].rstrip()
    assert message(answer)["reasoning_content"] == cut
    assert answer.json["choices"][0]["finish_reason"] == "stop"


def test_without_thinking(server):
    answer = message(server.chat(seed=3, **OFF))
    assert answer["content"] and "reasoning_content" not in answer


def test_openais_client(server):
    reply = openai_client(server).chat.completions.create(
        model="bundled", messages=USER, max_tokens=8, seed=3, extra_body=OFF
    )
    assert reply.choices[0].message.content


def test_what_follows_a_schema_has_no_reasoning(server):
    """The template is told, and what a model writes by a grammar is no reasoning; where it may call
    tools that follows it: test_server_reasoning_tools.py."""
    pytest.importorskip("llguidance")
    by_schema = {"type": "json_schema", "json_schema": {"schema": {"const": "a"}}}
    for more in ({}, {"chat_template_kwargs": {"enable_thinking": True}}):
        found = message(server.chat(response_format=by_schema, max_tokens=60, **more))
        assert found["content"] == '"a"' and "reasoning_content" not in found
    now = {"type": "function", "function": {"name": "now"}}
    asked = {"tools": [now], "tool_choice": "required", "max_tokens": 200}
    found = message(server.chat(**asked, **OFF))
    assert found["content"] is None and found["tool_calls"] and "reasoning_content" not in found
    found = message(server.chat(**asked))  # it comes to no end
    assert found["reasoning_content"] and "tool_calls" not in found


def test_all_that_renders_messages_takes_values(server):
    plain = server.post("/tokenize", {"messages": USER}).json["count"]
    assert server.post("/tokenize", {"messages": USER, **OFF}).json["count"] < plain
    body = {"input": "x", "max_output_tokens": 4, "chat_template_kwargs": {"mood": "glad"}}
    more = server.post("/v1/responses", body)
    body = {"input": "x", "max_output_tokens": 4}
    fewer = server.post("/v1/responses", body)
    assert more.json["usage"]["input_tokens"] > fewer.json["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"messages": []}, "chat_template_kwargs.messages"),
        ({"tools": "x"}, "chat_template_kwargs.tools"),
        ({"chat_template": "x"}, "chat_template_kwargs.chat_template"),
        ({"tokenize": False}, "chat_template_kwargs.tokenize"),
        ({"add_generation_prompt": False}, "chat_template_kwargs.add_generation_prompt"),
        ({"bos_token": "x"}, "chat_template_kwargs.bos_token"),
        ({"unread": True}, "chat_template_kwargs.unread"),
        ({"mood": "x" * 257}, "chat_template_kwargs.mood"),
        ({"mood": ["x"]}, "chat_template_kwargs.mood"),
        ({"mood": 1 << 63}, "chat_template_kwargs.mood"),
        ({f"mood{i}": 1 for i in range(17)}, "chat_template_kwargs"),
        ("mood", "chat_template_kwargs"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize"])
def test_values_that_are_refused(server, path, values, field):
    body = {"input": "x"} if path == "/v1/responses" else {"messages": USER}
    answer = server.post(path, body | {"chat_template_kwargs": values})
    assert (answer.status, answer.json["error"]["param"]) == (400, field)


def test_where_nothing_is_rendered(server):
    body = {"prompt": "x", "chat_template_kwargs": {"mood": "glad"}}
    answer = server.post("/v1/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "chat_template_kwargs")


def test_another_format(server):
    answer = server.chat(reasoning_format="hidden")
    assert (answer.status, answer.json["error"]["param"]) == (400, "reasoning_format")


def test_the_servers_own_choice(tmp_path):
    (tmp_path / "thinking.jinja").write_text(TEMPLATE)
    options = ("--chat-template", tmp_path / "thinking.jinja", "--reasoning-format", "none")
    with ServerProcess(*options) as server:
        assert message(server.chat(seed=3))["content"]
        assert message(server.chat(seed=3, reasoning_format="auto"))["content"] == ""


# ---------------------------------------------------------------------------------- the chunks
END = Completion("", [1], "stop", None, 0, 1, 0, 0.0, 0.0)


def reply(pieces, *, begins_inside=False, may_call=False, logprobs=False):
    """(the whole reply, the deltas of its stream) of a text in pieces."""
    chunks = ChatChunks("m", lambda i: (str(i), b"x"), logprobs, CallReader if may_call else None)
    chunks.split_reasoning(begins_inside)
    entries = ([(1, -0.5)],) if logprobs else ()
    made = list(chunks.opening(1))
    for piece in pieces:
        made += chunks.chunks(Event(0, piece, entries))
    made += chunks.chunks(Event(0, "", (), END))
    whole = chunks.fold(made)["choices"][0]
    return whole, [chunk["choices"][0] for chunk in made[1:]]


TEXT = "<think>\nWell </th.\n</think>\n\nYes, <b>"


@pytest.mark.parametrize("logprobs", [False, True])
def test_every_cut_of_a_reply(logprobs):
    for a, b in itertools.combinations(range(len(TEXT) + 1), 2):
        pieces = [TEXT[:a], TEXT[a:b], TEXT[b:]]
        whole, choices = reply(pieces, logprobs=logprobs)
        assert whole["message"]["reasoning_content"] == "Well </th."
        assert whole["message"]["content"] == "Yes, <b>"
        assert whole["finish_reason"] == "stop"
        assert len((whole["logprobs"] or {"content": ()})["content"]) == 3 * logprobs
        kinds = [kind for choice in choices for kind in choice["delta"] if choice["delta"][kind]]
        assert kinds == sorted(kinds, reverse=True)  # reasoning_content before content
        assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)


def test_calls_behind_reasoning():
    call = '<tool_call>{"name": "now", "arguments": {"a": 1}}</tool_call>'
    text = f"<think>\nWhat time is it?</think>\n\n{call}"
    for step in (1, 2, 7, len(text)):
        whole, _ = reply([text[i : i + step] for i in range(0, len(text), step)], may_call=True)
        said = whole["message"]
        assert (said["content"], said["reasoning_content"]) == (None, "What time is it?")
        (found,) = said["tool_calls"]
        assert json.loads(found["function"]["arguments"]) == {"a": 1}
        assert whole["finish_reason"] == "tool_calls"


def test_nothing_is_sent_while_it_is_not_known_what_it_is():
    _, choices = reply(["<thi", "nk>", "\n", "a", " ", "</think", ">", "\n\n", "b"])
    deltas = [choice["delta"] for choice in choices]
    assert deltas == [{"reasoning_content": "a"}, {"content": "b"}, {}]


def test_a_reply_without_reasoning():
    whole, _ = reply(["Yes", " <think>"])
    assert whole["message"]["content"] == "Yes <think>"
    assert "reasoning_content" not in whole["message"]
