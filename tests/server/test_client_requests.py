"""What clients send, each in its own way and in our words: served, or refused so that they know.

The shapes are those of OpenCode, Qwen Code, Cline, Open WebUI, instructor, LangChain, `llm`,
LiteLLM, the Hugging Face hub's client, llama.cpp's and vLLM's users. test_server_clients.py has the
clients themselves.
"""

import json

import pytest
from support.server_process import NO_END, USER, ServerProcess

LONG = "Runs a command in a shell. " * 400  # Qwen Code sends 9,242 characters, OpenCode 4,628


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("llguidance")
    with ServerProcess("--slots", 2, environment={"BITNET_API_KEY": ""}) as one:
        yield one


@pytest.fixture(scope="module")
def strict():
    names = ("--model-name", "main", "--model-name", "gpt-4o")
    with ServerProcess("--slots", 2, "--strict", *names) as one:
        yield one


def tool(parameters, name="run", **fields):
    return {"type": "function", "function": {"name": name, "parameters": parameters} | fields}


def content(answer):
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["message"]["content"]


def arguments(answer):
    assert answer.status == 200, answer.body
    (call,) = answer.json["choices"][0]["message"]["tool_calls"]
    return json.loads(call["function"]["arguments"])


def refused(answer, param):
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body
    return answer.json["error"]["message"]


# ------------------------------------------------------------------------------------------ agents
def test_an_agent_s_tools(server):
    """OpenCode and Qwen Code: descriptions of thousands of characters, zod's schemas."""
    zod = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "x", "maxLength": 8},
            "timeout": {"type": "integer", "exclusiveMinimum": 0, "maximum": 999},
        },
        "required": ["command"],
        "additionalProperties": False,
    }
    fields = {
        "tools": [tool(zod, description=LONG), tool({}, "list", strict=False)],
        "tool_choice": {"type": "function", "function": {"name": "run"}},
        "max_tokens": 32000, "stream_options": {"include_usage": True}, "top_p": 1,
        "metadata": {"session": "1"}, "prompt_cache_key": "a", "store": False,
    }  # fmt: skip
    prompt = [{"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control":
               {"type": "ephemeral"}}]}, *USER]  # fmt: skip
    answer = server.chat(messages=prompt, **fields)  # as long as the model's context allows
    assert answer.json["error"]["code"] == "context_length_exceeded"
    fields["tools"][0] = tool(zod, description=LONG[:50])
    found = arguments(server.chat(messages=prompt, **fields))
    assert {"command"} <= found.keys() <= {"command", "timeout"}


@pytest.mark.parametrize("parameters", [
    {"properties": {"a": {"const": 1}}, "required": ["a"]},
    {"type": None, "properties": {"a": {"const": 1, "title": "A"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/One"}}, "required": ["a"],
     "$defs": {"One": {"oneOf": [{"const": 1}], "discriminator": {"propertyName": "x"}}}},
    {"type": "object", "properties": {"a": {"const": 1, "not": {"const": 2}}}, "required": ["a"]},
])  # fmt: skip
def test_parameters_as_they_are_written(server, parameters):
    answer = server.chat(tools=[tool(parameters)], tool_choice="required", max_tokens=60,
                         parallel_tool_calls=False)  # fmt: skip
    assert arguments(answer) == {"a": 1}


def test_schemas_of_pydantic_and_zod(server):
    strings = ["path", "file-path", "binary", "password", "ipv4", "ipv6", "ipv4network",
               "ipvanyaddress", "json-string", "uuid", "date-time"]  # fmt: skip
    listed = {name.replace("-", "_"): {"type": "string", "format": name} for name in strings}
    listed["names"] = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}
    listed["record"] = {"type": "object", "propertyNames": {"type": "string"},
                        "additionalProperties": {"type": "integer"}}  # fmt: skip
    listed["any"] = True
    schema = {"title": "Job", "type": "object", "properties": listed, "required": []}
    shape = {"type": "json_schema", "json_schema": {"name": "Job", "schema": schema}}
    assert server.chat(response_format=shape).status == 200
    log = server.log()
    for name in ("format path", "format ipv4network", "uniqueItems", "propertyNames"):
        assert log.count(f"passed over: response_format: the schema's {name}\n") == 1
    assert (
        server.chat(response_format=shape).status == 200 and server.log().count("uniqueItems") == 1
    )


def test_a_schema_of_true(server):
    shape = {"type": "json_schema", "json_schema": {"name": "any", "schema": True, "strict": True}}
    assert server.chat(response_format=shape).status == 200


def test_look_ahead_names_tool_property_and_reason(server):
    amount = {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*[0-9]*$"}  # pydantic's Decimal
    nested = {"type": "object", "properties": {"price": {"anyOf": [{"type": "number"}, amount]}}}
    tools = [tool({}, "list"), tool({"properties": {"order": nested}}, "pay")]
    message = refused(server.chat(tools=tools), "tools[1].function.parameters")
    assert "tool 'pay'" in message and "'order.price'" in message and "look-ahead" in message


def test_a_pattern_that_is_none_names_the_tool(server):
    tools = [tool({}, "list"), tool({"properties": {"a": {"type": "string", "pattern": "("}}})]
    assert "tool 'run'" in refused(server.chat(tools=tools), "tools[1].function.parameters")


# ------------------------------------------------------------------------------ structured output
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name"],
}  # fmt: skip


@pytest.mark.parametrize("fields", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "P", "schema": PERSON}}},
    {"response_format": {"type": "json_object", "schema": PERSON}},  # llama.cpp's server
    {"response_format": {"type": "json_schema", "schema": PERSON}},
    {"response_format": {"type": "json", "value": PERSON}},  # the Hugging Face hub's client
    {"response_format": {"type": "json_object", "value": PERSON}},
    {"json_schema": PERSON},  # llama.cpp's server
    {"guided_json": PERSON},  # vLLM
    {"guided_json": json.dumps(PERSON)},
    {"structured_outputs": {"json": PERSON, "backend": None}},
])  # fmt: skip
def test_objects_are_closed(server, fields):
    """instructor, LangChain, `llm --schema`: no additionalProperties, and yet a short object."""
    for seed in range(3):
        answer = server.chat(**fields, seed=seed, max_tokens=100, temperature=1.2)
        assert {"name"} <= json.loads(content(answer)).keys() <= {"name", "age"}
        assert answer.json["choices"][0]["finish_reason"] == "stop"


GBNF = 'root ::= "yes" | "no" tail\ntail ::= [!?]{1,2}\n'
LARK = 'start: "yes" | "no" TAIL\nTAIL: /[!?]{1,2}/\n'


@pytest.mark.parametrize("fields", [
    {"grammar": GBNF}, {"grammar": LARK}, {"regex": "yes|no[!?]{1,2}"},
    {"choice": ["yes", "no!", 'no"']}, {"guided_choice": ["yes", "no!"]},
    {"guided_regex": "yes|no[!?]{1,2}"}, {"guided_grammar": LARK},
    {"structured_outputs": {"regex": "yes|no[!?]"}}, {"structured_outputs": {"choice": ["yes"]}},
    {"structured_outputs": {"grammar": GBNF}},
    {"response_format": {"type": "regex", "value": "yes"}},
    {"response_format": {"type": "grammar", "grammar": GBNF}},
])  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_grammars_expressions_and_choices(server, path, fields):
    given = {"prompt": "So"} if path == "/v1/completions" else {"messages": USER}
    for seed in range(2):
        body = given | {"max_tokens": 20, "temperature": 1, "seed": seed} | fields
        answer = server.post(path, body)
        assert answer.status == 200, answer.body
        choice = answer.json["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert text in ("yes", "no!", "no?", "no!!", "no!?", "no?!", "no??", 'no"')
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(("fields", "param"), [
    ({"grammar": GBNF, "regex": "a"}, "regex"),
    ({"response_format": {"type": "json_object"}, "choice": ["a"]}, "choice"),
    ({"grammar": "root ::= ("}, "grammar"), ({"grammar": "root ::= missing"}, "grammar"),
    ({"grammar": ""}, "grammar"), ({"regex": "("}, "regex"), ({"regex": "a(?=b)"}, "regex"),
    ({"choice": []}, "choice"),
    ({"choice": [""]}, "choice"), ({"choice": ["a"] * 2001}, "choice"),
    ({"guided_json": "{"}, "guided_json"), ({"guided_json": "5"}, "guided_json"),
    ({"json_schema": {"type": "nonsense"}}, "json_schema"),
    ({"response_format": {"type": "regex"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json", "value": "x"}}, "response_format"),
    ({"grammar": "a" * 300_000}, "grammar"), ({"grammar": 'root ::= "' + "(" * 60_000}, "grammar"),
])  # fmt: skip
def test_what_of_them_is_refused(server, fields, param):
    assert "\n" not in refused(server.chat(**fields), param)
    assert server.get("/health").status == 200


# -------------------------------------------------------------------------------- unknown fields
def test_unknown_fields_are_passed_over_with_a_line_each(server):
    """Open WebUI, Cline, SillyTavern and others send what is theirs."""
    message = {"role": "user", "content": "Who?", "timestamp": 5, "id": "x"}
    fields = {"session_id": "s", "features": {"web": False}, "keep_alive": 5, "logit_bias": {}}
    part = {"type": "text", "text": "x", "annotations_of_ours": {}}
    for _ in range(2):
        assert server.chat(messages=[message], **fields).status == 200
        assert server.chat(messages=[{"role": "user", "content": [part]}]).status == 200
    log = server.log()
    for name in ("session_id", "features", "keep_alive", "messages[].timestamp",
                 "messages[].content[].annotations_of_ours"):  # fmt: skip
        assert log.count(f"passed over: unknown field {name}\n") == 1
    assert server.chat(**{"no\nword of a prompt": 1}).status == 200
    assert "no\nword" not in server.log() and "unknown field of another form" in server.log()


def test_names_do_not_fill_the_log(server):
    for i in range(300):
        server.chat(**{f"unknown_{i}": 1, "max_tokens": 0})
    assert server.log().count("unknown field unknown_") < 257


def test_strict(strict):
    assert "unknown field" in refused(strict.chat(session_id="s"), "session_id")
    message = USER[0] | {"timestamp": 5}
    refused(strict.chat(messages=[message]), "messages[].timestamp")
    assert strict.chat(messages=[USER[0] | {"timestamp": None}], user="me").status == 200
    shape = {"type": "json_object", "schema": {"type": "array", "uniqueItems": True}}
    assert "uniqueItems" in refused(strict.chat(response_format=shape), "response_format")
    assert strict.chat(model="another").status == 404


@pytest.mark.parametrize("fields", [
    {"bad_words": ["a"]}, {"mirostat": 2}, {"best_of": 3}, {"functions": [{"name": "f"}]},
    {"use_beam_search": True}, {"include_stop_str_in_output": True}, {"typical_p": 0.5},
    {"modalities": ["text", "audio"]}, {"suffix": "x"}, {"chat_template": "x"},
])  # fmt: skip
def test_what_would_change_the_answer_is_refused(server, fields):
    (name,) = fields
    assert refused(server.chat(**fields), name) == f"{name}: not supported by this server"


def test_what_asks_for_nothing(server):
    fields = {"bad_words": [], "mirostat": 0, "best_of": 1, "typical_p": 1.0, "dry_multiplier": 0,
              "xtc_probability": 0.0, "use_beam_search": False, "stop": "", "top_k": -1, "n": None,
              "tools": None, "stream_options": {"include_usage": None}}  # fmt: skip
    assert server.chat(**fields).status == 200


def test_an_image_is_refused(server):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    refused(
        server.chat(messages=[{"role": "user", "content": [part]}]), "messages[0].content[0].type"
    )


# -------------------------------------------------------------------------- what fields' names say
def test_the_names_of_penalties_and_limits(server):
    fields = {"max_tokens": 40, "temperature": 0, "logit_bias": NO_END}
    plain = content(server.chat(**fields))
    assert content(server.chat(top_p=0, **fields | {"temperature": 1})) == plain
    ours = content(server.chat(repetition_penalty=1.5, **fields))
    assert content(server.chat(repeat_penalty=1.5, **fields)) == ours != plain
    assert server.chat(repeat_penalty=1.5, repetition_penalty=1.2).status == 400
    assert server.chat(repeat_penalty=0).status == 400


def test_where_a_reply_ends(server):
    usage = lambda **fields: server.chat(seed=3, **fields).json["usage"]["completion_tokens"]  # noqa: E731
    short = usage(max_tokens=60)
    assert short < 50
    assert usage(max_tokens=60, min_tokens=50) >= 50
    assert usage(max_tokens=60, ignore_eos=True) == 60
    first = server.chat(seed=3, logprobs=True, max_tokens=60)
    tokens = [e["token"] for e in first.json["choices"][0]["logprobs"]["content"]]
    (stop,) = server.post("/tokenize", {"prompt": tokens[2], "add_special_tokens": False}).json[
        "tokens"
    ]
    stopped = server.chat(seed=3, stop_token_ids=[stop], max_tokens=60)
    assert stopped.json["usage"]["completion_tokens"] == 3
    assert content(stopped) == "".join(tokens[:2])
    refused(server.chat(min_tokens=9, max_tokens=8), "min_tokens")
    refused(server.chat(ignore_eos=True, regex="a"), "ignore_eos")
    refused(server.chat(stop_token_ids=[-1]), "stop_token_ids[0]")


def test_stop_strings_count_behind_min_tokens(server):
    fields = {"seed": 3, "max_tokens": 30, "ignore_eos": True}
    text = content(server.chat(**fields))
    stop = text[1:3]
    assert content(server.chat(**fields, stop=stop)) == text[:1]
    assert len(content(server.chat(**fields, stop=stop, min_tokens=20))) > 15


def test_no_tokens_at_all(server):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = server.chat(**{name: 0})
        assert content(answer) == "" and answer.json["choices"][0]["finish_reason"] == "length"
        assert (
            answer.json["usage"]["completion_tokens"] == 0 < answer.json["usage"]["prompt_tokens"]
        )
    chunks = server.chunks(messages=USER, max_tokens=0)
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, "length"]
    assert server.chat(max_tokens=-1, stop="e").status == 200


def test_a_prompt_that_is_not_taken_from_the_cache(server):
    words = [{"role": "user", "content": "A word that nobody said. " * 9}]
    cached = [server.chat(messages=words, **fields).json["usage"]["prompt_tokens_details"]
              for fields in ({}, {}, {"cache_prompt": False}, {"cache_prompt": True})]  # fmt: skip
    assert [bool(one["cached_tokens"]) for one in cached] == [False, True, False, True]


def test_a_message_that_is_continued(server):
    begun = [*USER, {"role": "assistant", "content": "It is the king, "}]
    fields = {"messages": begun, "continue_final_message": True, "seed": 5, "max_tokens": 12}
    text = content(server.chat(**fields, add_generation_prompt=False))
    ids = server.post("/tokenize", {"messages": begun, "continue_final_message": True,
                                    "add_generation_prompt": False}).json["tokens"]  # fmt: skip
    shown = server.post("/detokenize", {"tokens": ids}).json["prompt"]
    assert shown.endswith("Assistant: It is the king, ")
    same = server.post("/v1/completions", {"prompt": ids, "seed": 5, "max_tokens": 12})
    assert text == same.json["choices"][0]["text"] != ""
    assert content(server.chat(**fields, echo=True)) == "It is the king, " + text
    refused(server.chat(**fields, add_generation_prompt=True), "continue_final_message")
    refused(server.chat(continue_final_message=True), "continue_final_message")


def test_a_prompt_without_the_beginning_of_a_reply(server):
    counts = [server.chat(add_generation_prompt=given).json["usage"]["prompt_tokens"]
              for given in (True, False)]  # fmt: skip
    assert counts[0] > counts[1]


def test_effort_and_verbosity(tmp_path):
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ reasoning_effort }}/{{ verbosity }}"
        "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    )
    (tmp_path / "t.jinja").write_text(template)
    with ServerProcess("--chat-template", tmp_path / "t.jinja") as other:
        fields = {"verbosity": "low", "max_tokens": 0}
        long, none, own = (
            other.chat(**fields, **more).json["usage"]["prompt_tokens"]
            for more in ({"reasoning_effort": "high"}, {"reasoning_effort": "none"},
                         {"reasoning_effort": "none",
                          "chat_template_kwargs": {"enable_thinking": True}})
        )  # fmt: skip
        assert none < long and none < own
    (tmp_path / "t.jinja").write_text(  # Qwen3.8 knows three of them
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if reasoning_effort is defined and "
        "reasoning_effort not in ('xhigh', 'medium', 'low') %}{{ raise_exception('no such') }}"
        "{% endif %}{{ reasoning_effort }}"
    )
    with ServerProcess("--chat-template", tmp_path / "t.jinja") as other:
        counts = {
            effort: other.chat(reasoning_effort=effort, max_tokens=0).json["usage"]["prompt_tokens"]
            for effort in ("none", "low", "high", "xhigh")
        }
        assert counts["none"] == counts["low"] < counts["high"] == counts["xhigh"]
        wrong = {"chat_template_kwargs": {"reasoning_effort": "high"}}
        assert other.chat(**wrong).status == 400
        assert other.chat(reasoning_effort="much").status == 400


def test_effort_where_no_template_reads_it(server):
    assert server.chat(reasoning_effort="high", verbosity="low").status == 200


# ------------------------------------------------------------------------------------- the envelope
def test_any_model_name_is_served(server):
    answer = server.chat(model="gpt-4o")
    assert answer.status == 200 and answer.json["model"] == "bundled"
    assert server.get("/v1/models/gpt-4o").status == 404


def test_aliases(strict):
    assert [m["id"] for m in strict.get("/v1/models").json["data"]] == ["main", "gpt-4o"]
    assert strict.get("/v1/models/gpt-4o").json["id"] == "gpt-4o"
    assert strict.chat(model="gpt-4o").status == strict.chat(model="main").status == 200


def test_a_full_context_in_words_that_litellm_knows(server):
    error = server.chat(messages=[{"role": "user", "content": "word " * 9000}]).json["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is ")


def test_request_ids(server):
    body = {"messages": USER, "max_tokens": 1}
    own = server.request("POST", "/v1/chat/completions", body, {"X-Request-Id": "abc-1.2"})
    assert own.headers["x-request-id"] == "abc-1.2"
    made = [server.chat(max_tokens=1).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1] and all(made)
    for wrong in ("a b", "x" * 129, "\u00fc"):
        other = server.request("GET", "/health", None, {"X-Request-Id": wrong.encode("latin-1")})
        assert other.headers["x-request-id"] not in ("", wrong)
    assert server.get("/nowhere").headers["x-request-id"]


def test_an_empty_key_is_none(server):
    assert server.get("/v1/models").status == 200  # it was started with BITNET_API_KEY=""
