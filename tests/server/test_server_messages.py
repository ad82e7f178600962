"""/v1/messages, by Anthropic's client and by plain HTTP, on a real process: what agents send."""

import json

import pytest
from support.agent_requests import CLAUDE_CODE_LATER, READ, claude_code, long_model
from support.server_process import USER, ServerProcess, anthropic_client, server_with_template

pytest.importorskip("llguidance")
ASKED = USER[0]["content"]
THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
)
KEY = "a key of ours"
GREEDY = {"temperature": 0}  # a field that the client has no more


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = long_model(tmp_path_factory.mktemp("model"), 2048)
    with ServerProcess(path, "--model-name", "bundled", "--slots", 2) as one:
        yield one


@pytest.fixture(scope="module")
def client(server):
    return anthropic_client(server)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    with server_with_template(tmp_path_factory.mktemp("template"), THINKING) as one:
        yield one


def ask(server, **fields):
    body = {"messages": USER, "max_tokens": 200, "seed": 3} | fields
    return server.post("/v1/messages?beta=true", body)


def events_of(server, **fields):
    """The events of a stream, in the order in which they must be."""
    answer = ask(server, **fields | {"stream": True})
    assert answer.status == 200, answer.body
    assert answer.headers.get_content_type() == "text/event-stream"
    events = []
    for text in answer.body.decode().split("\n\n"):
        if text and not text.startswith(":"):
            name, data = text.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert events[-1]["type"] == name.removeprefix("event: ")
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    n_open, index = 0, -1
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            n_open, index = n_open + 1, index + 1
        assert event["index"] == index and n_open == 1
        n_open -= event["type"] == "content_block_stop"
    return events


# -------------------------------------------------------------------------------------------- text
def test_a_message_is_what_chat_says(client, server):
    found = client.messages.create(
        model="bundled", max_tokens=3, messages=USER, system="Speak.", extra_body=GREEDY
    )
    said = [{"role": "system", "content": "Speak."}, *USER]
    chat = server.chat(messages=said, max_tokens=3, temperature=0).json
    assert found.content[0].text == chat["choices"][0]["message"]["content"]
    assert (found.type, found.role, found.stop_reason) == ("message", "assistant", "max_tokens")
    read = found.usage.input_tokens + found.usage.cache_read_input_tokens
    assert read == chat["usage"]["prompt_tokens"] and found.usage.output_tokens == 3


def test_a_stream_is_the_whole(client):
    asked = {"model": "bundled", "max_tokens": 20, "messages": USER, "extra_body": GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    read = [m.usage.input_tokens + m.usage.cache_read_input_tokens for m in (whole, final)]
    assert read[0] == read[1]


def test_why_it_stops(server):
    bare = {"messages": [{"role": "user", "content": "a"}], "temperature": 0}
    text = ask(server, **bare, max_tokens=12).json["content"][0]["text"]
    stop = text[4:7]
    found = ask(server, **bare, max_tokens=12, stop_sequences=[stop]).json
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", stop)
    assert found["content"][0]["text"] == text[: text.index(stop)]
    for seed in range(30):
        found = ask(server, seed=seed, max_tokens=200).json
        if found["stop_reason"] == "end_turn":
            break
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)


def test_blocks_of_a_system_and_of_a_user(server):
    """Several texts reach the model as lines; a billing line does not reach it."""
    billing = {"type": "text", "text": "x-anthropic-billing-header: cch=1;"}
    blocks = [{"type": "text", "text": text, "cache_control": None} for text in ("A.", "B.")]
    counts = [
        ask(server, system=system, max_tokens=1, messages=[{"role": "user", "content": said}])
        .json["usage"]
        for system, said in (("A.\nB.", "A.\nB."), (blocks, blocks), ([billing, *blocks], blocks))
    ]  # fmt: skip
    totals = {n["input_tokens"] + n["cache_read_input_tokens"] for n in counts}
    assert len(totals) == 1
    alone = ask(server, system=[billing], max_tokens=1)
    assert alone.json["usage"]["input_tokens"] <= ask(server).json["usage"]["input_tokens"] + 40


def test_tokens_are_counted(client, server):
    asked = {"model": "bundled", "messages": USER, "tools": [READ], "system": "Speak."}
    n = client.messages.count_tokens(**asked).input_tokens
    usage = ask(server, **asked, max_tokens=1).json["usage"]
    assert n == usage["input_tokens"] + usage["cache_read_input_tokens"]
    long = {"messages": [{"role": "user", "content": "go " * 4000}]}
    assert server.post("/v1/messages/count_tokens", long).json["input_tokens"] > 2048


# ------------------------------------------------------------------------------------------- tools
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "Read"}])
def test_a_call_whole_and_as_a_stream(client, choice):
    choice = choice | {"disable_parallel_tool_use": True}
    asked = {"model": "bundled", "max_tokens": 200, "messages": USER, "tools": [READ],
             "tool_choice": choice, "extra_body": GREEDY}  # fmt: skip
    whole = client.messages.create(**asked)
    (call,) = whole.content
    assert (call.type, call.name, whole.stop_reason) == ("tool_use", "Read", "tool_use")
    assert "whole" in call.input
    with client.messages.stream(**asked) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 1 and json.loads("".join(pieces)) == final.content[0].input == call.input


def test_the_result_of_a_call_reaches_the_model_as_that_of_a_chat(server):
    call = {"id": "c", "type": "function",
            "function": {"name": "Read", "arguments": '{"whole": true}'}}  # fmt: skip
    chat = [*USER, {"role": "assistant", "content": "Well.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "noon"},
            {"role": "user", "content": "And?"}]  # fmt: skip
    turns = [
        *USER,
        {"role": "assistant", "content": [
            {"type": "redacted_thinking", "data": "xyz"}, {"type": "text", "text": "Well."},
            {"type": "tool_use", "id": "c", "name": "Read", "input": {"whole": True}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": "noon"},
            {"type": "text", "text": "And?"}]},
    ]  # fmt: skip
    expected = server.post("/tokenize", {"messages": chat}).json["count"]
    counted = server.post("/v1/messages/count_tokens", {"messages": turns})
    assert counted.json["input_tokens"] == expected


def test_a_call_that_is_cut(server):
    found = ask(server, tools=[READ], tool_choice={"type": "any"}, max_tokens=36).json
    assert found["stop_reason"] == "max_tokens" and found["content"][-1]["input"] == {}


def test_no_calls_where_none_are_wanted(server):
    found = ask(server, tools=[READ], tool_choice={"type": "none"}, max_tokens=20).json
    assert {block["type"] for block in found["content"]} <= {"text"}


def test_a_form_of_json(server):
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        found = ask(server, **fields).json
        assert set(json.loads(found["content"][0]["text"])) == {"sure"}


def test_tools_that_are_not_run_here(server):
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    counts = [
        server.post("/v1/messages/count_tokens", {"messages": USER, "tools": tools}).json
        for tools in ([READ], [search, READ])
    ]
    assert counts[0] == counts[1]
    for choice in ({"type": "tool", "name": "web_search"}, {"type": "any"}):
        answer = ask(server, tools=[search], tool_choice=choice)
        assert answer.status == 400 and "tool_choice" in answer.json["error"]["message"]


def test_claude_code(server):
    """Two turns of a session: the second reads only what is new, though its billing line is."""
    first = events_of(
        server,
        **claude_code(
            "a1",
        ),
    )
    second = events_of(server, **claude_code("b2", *CLAUDE_CODE_LATER) | {"max_tokens": 4})
    before, after = (events[-2]["usage"] for events in (first, second))
    total = sum(before[name] for name in ("input_tokens", "cache_read_input_tokens"))
    grown = after["input_tokens"] + after["cache_read_input_tokens"] - total
    assert grown > 0 and after["input_tokens"] < grown + 40 < total


# ---------------------------------------------------------------------------------------- thinking
def test_thinking_is_a_block_of_its_own(thinker):
    client = anthropic_client(thinker)
    asked = {"model": "bundled", "max_tokens": 12, "messages": USER, "extra_body": GREEDY,
             "thinking": {"type": "enabled", "budget_tokens": 1024}}  # fmt: skip
    found = client.messages.create(**asked)
    assert found.content[0].type == "thinking" and found.content[0].thinking
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.content[0].thinking == found.content[0].thinking
    kinds = {e["delta"]["type"] for e in events_of(thinker, max_tokens=12) if "index" in e
             and "delta" in e}  # fmt: skip
    assert kinds <= {"thinking_delta", "signature_delta", "text_delta"}
    off = client.messages.create(**asked | {"thinking": {"type": "disabled"}})
    assert [block.type for block in off.content] == ["text"]


def test_thoughts_that_come_back_change_nothing(thinker):
    said = {"type": "text", "text": "Me."}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    counts = [
        thinker.post("/v1/messages/count_tokens", {
            "messages": [*USER, {"role": "assistant", "content": blocks}, *USER]}).json
        for blocks in ([said], [thought, said])
    ]  # fmt: skip
    assert counts[0] == counts[1]


# ------------------------------------------------------------------------------------ errors, keys
def test_errors_are_those_of_the_client(server):
    anthropic = pytest.importorskip("anthropic")
    client = anthropic_client(server)
    asked = {"model": "bundled", "max_tokens": 4, "messages": USER}
    for more, kind, name in (
        ({"messages": []}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": "x" * 5_000_000}]},
         anthropic.RequestTooLargeError, "request_too_large"),
        ({"messages": [{"role": "user", "content": "go " * 9000}]},
         anthropic.BadRequestError, "invalid_request_error"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            client.messages.create(**asked | more)
        assert caught.value.body["type"] == "error"
        assert caught.value.body["error"]["type"] == name
    assert "prompt is too long: " in str(caught.value) and "> 2048 maximum" in str(caught.value)


def test_the_key_in_its_header():
    anthropic = pytest.importorskip("anthropic")
    with ServerProcess(environment={"BITNET_API_KEY": KEY}) as server:
        asked = {"model": "bundled", "max_tokens": 2, "messages": USER}
        for options in ({"api_key": KEY}, {"api_key": None, "auth_token": KEY}):
            assert anthropic_client(server, **options).messages.create(**asked).content
        with pytest.raises(anthropic.AuthenticationError) as caught:
            anthropic_client(server, api_key="another key").messages.create(**asked)
        assert caught.value.body["error"]["type"] == "authentication_error"
        both = {"x-api-key": KEY, "Authorization": "Bearer another"}
        body = {"messages": USER, "max_tokens": 2}
        assert server.post("/v1/messages", body, **both).status == 200
        assert server.post("/v1/chat/completions", body, **{"x-api-key": KEY}).status == 200
        assert server.post("/v1/chat/completions", body, **{"x-api-key": ""}).status == 401
        assert KEY not in server.log()


def test_what_is_no_endpoint(server):
    answer = server.get("/v1/messages")
    assert (answer.status, answer.json["type"]) == (405, "error")
    answer = server.get("/v1/messages/batches")
    assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")
    assert server.get("/v1/messagesx").json["error"]["type"] == "invalid_request_error"


CALL = {"type": "tool_use", "id": "c", "name": "Read", "input": {}}


def turn(*blocks, role="user"):
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": USER * 4097}, "messages"),
        (turn({"type": "redacted_thinking", "data": "x"}, role="assistant"), "messages"),
        (turn(5), "messages[0].content[0].type"),
        (turn({"type": "text"}), "messages[0].content[0]"),
        (turn({"type": "text", "text": 5}), "messages[0].content[0].text"),
        (turn({"type": "image", "source": {}}), "messages[0].content[0].type"),
        (turn({"type": "document", "source": {"type": "base64"}}), "messages[0].content[0].source"),
        (turn(CALL), "messages[0].content[0].type"),
        (turn(CALL | {"input": "x"}, role="assistant"), "messages[0].content[0].input"),
        (turn(CALL | {"name": "a b"}, role="assistant"), "messages[0].content[0].name"),
        (turn(CALL | {"id": ""}, role="assistant"), "messages[0].content[0].id"),
        (turn({"type": "tool_result", "tool_use_id": "d"}), "messages[0].content[0].tool_use_id"),
        (turn({"type": "tool_result"}), "messages[0].content[0].tool_use_id.id"),
        (turn({"type": "thinking"}, role="assistant"), "messages[0].content[0].text"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [READ, READ]}, "tools[1].name"),
        ({"tools": [READ | {"input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": [READ | {"type": "bash_20250124"}]}, "tools[0].type"),
        ({"tools": [READ | {"name": f"f{i}"} for i in range(129)]}, "tools"),
        ({"tools": [READ], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tools": [READ], "tool_choice": {"type": "always"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"output_config": {"effort": "utmost"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 5}}}},
         "output_config.format"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"temperature": "hot"}, "temperature"),
    ],
)  # fmt: skip
def test_what_is_refused(server, fields, field):
    answer = ask(server, **{"max_tokens": 4} | fields)
    assert (answer.status, answer.json["type"]) == (400, "error"), answer.body
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert field in answer.json["error"]["message"]
    assert "\n" not in answer.json["error"]["message"]


def test_many_blocks_do_not_stop_others(server):
    """Thousands of them, in each of the places where there may be some."""
    block = {"type": "text", "text": "x"}
    for body in (turn(*[block] * 60_000), {"system": [block] * 60_000},
                 {"messages": [{"role": "user", "content": [block] * 20}] * 4096}):  # fmt: skip
        assert ask(server, **body).status == 400
    assert ask(server, max_tokens=2).status == 200


@pytest.mark.parametrize("text", ["I have", "I have  ", ""])
def test_a_reply_goes_on_with_the_assistants_last_text(server, text):
    messages = [*USER, {"role": "assistant", "content": text}]
    said = ask(server, messages=messages, max_tokens=6, **GREEDY).json
    (block,) = said["content"]
    fields = {"messages": messages, "max_tokens": 6, "continue_final_message": True, **GREEDY}
    answer = server.post("/v1/chat/completions", fields).json
    assert answer["choices"][0]["message"]["content"] == block["text"]
    counted = server.post("/v1/messages/count_tokens", {"messages": messages}).json
    assert counted["input_tokens"] == answer["usage"]["prompt_tokens"]
