"""Scoring over HTTP: an echo with logprobs, prompt_logprobs, and what lm-eval asks first."""

import pytest
from support.server_process import USER, ServerProcess

PROMPT = "And the king said to him, go."


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 2) as one:
        yield one


def complete(server, **fields):
    answer = server.post("/v1/completions", {"prompt": PROMPT, "temperature": 0} | fields)
    assert answer.status == 200, answer.body
    return answer.json


def test_an_echo_scores_the_prompt(server, model):
    ids = model.encode_prompt(PROMPT)
    whole = complete(server, echo=True, logprobs=1, max_tokens=1)
    (choice,) = whole["choices"]
    found = choice["logprobs"]
    assert choice["text"].startswith(PROMPT) and whole["usage"]["completion_tokens"] == 1
    assert [len(column) for column in found.values()] == [len(ids) + 1] * 4
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    for n_context in (1, 3, len(ids) - 1):  # as lm-eval adds them up
        total, is_greedy = model.loglikelihood(ids[:n_context], ids[n_context:])
        assert sum(found["token_logprobs"][n_context:-1]) == pytest.approx(total, abs=1e-9)
        tops = zip(found["token_logprobs"], found["top_logprobs"], strict=True)
        assert all(own == max(top.values()) for own, top in list(tops)[n_context:-1]) == is_greedy
    offsets = found["text_offset"]
    named = zip(found["tokens"], offsets, strict=True)
    assert all(choice["text"][at:].startswith(token) for token, at in named if token[:1] != "<")


def test_an_end_token_is_counted_too(server, model):
    """Whoever adds up [ctxlen:-1] would lose the last token of the prompt otherwise."""
    end = {str(model.tokenizer.eos_ids[0]): 100}
    found = complete(server, echo=True, logprobs=1, max_tokens=1, logit_bias=end)
    assert found["choices"][0]["finish_reason"] == "stop"
    n = len(model.encode_prompt(PROMPT))
    assert len(found["choices"][0]["logprobs"]["tokens"]) == n + 1


def test_only_the_prompt(server, model):
    ids = model.encode_prompt(PROMPT)
    both = complete(server, prompt=[ids, ids[:4]], echo=True, logprobs=2, max_tokens=0)
    assert [len(c["logprobs"]["tokens"]) for c in both["choices"]] == [len(ids), 4]
    assert both["choices"][0]["text"] == PROMPT and both["usage"]["completion_tokens"] == 0
    assert all(
        len(top) in (2, 3) for c in both["choices"] for top in c["logprobs"]["top_logprobs"][1:]
    )
    plain = complete(server, echo=True, max_tokens=4)["choices"][0]
    assert plain["text"] == PROMPT + complete(server, max_tokens=4)["choices"][0]["text"]
    assert plain["logprobs"] is None
    one = complete(server, prompt=[ids[0]], echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert one["logprobs"]["token_logprobs"] == [None]


def test_an_echo_in_a_stream(server):
    fields = {
        "prompt": PROMPT,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 5,
        "temperature": 0,
        "n": 2,
    }
    whole = complete(server, **fields)
    chunks = server.chunks("/v1/completions", **fields)
    for i, choice in enumerate(whole["choices"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == i]
        assert "".join(part["text"] for part in parts) == choice["text"]
        tokens = [t for part in parts if part["logprobs"] for t in part["logprobs"]["tokens"]]
        assert tokens == choice["logprobs"]["tokens"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs(server, path):
    given = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": USER}
    body = given | {"prompt_logprobs": 2, "max_tokens": 2, "temperature": 0}
    answer = server.post(path, body)
    assert answer.status == 200, answer.body
    holder = answer.json["choices"][0] if "prompt" in given else answer.json
    listed = holder["prompt_logprobs"]
    assert len(listed) == answer.json["usage"]["prompt_tokens"] and listed[0] is None
    for entries in listed[1:]:
        assert len(entries) in (2, 3)
        ranks = sorted(entry["rank"] for entry in entries.values())
        assert ranks[:2] == [1, 2]
        by_rank = sorted(entries.values(), key=lambda entry: entry["rank"])
        logprobs = [entry["logprob"] for entry in by_rank]
        assert logprobs == sorted(logprobs, reverse=True) and isinstance(
            by_rank[0]["decoded_token"], str
        )
    assert server.post(path, body | {"stream": True}).json["error"]["param"] == "prompt_logprobs"
    assert server.post(path, body | {"prompt_logprobs": 21}).status == 400


def test_streams_go_on_while_prompts_are_scored(server):
    stream = server.start_stream(max_tokens=200)
    for _ in range(3):
        complete(server, prompt="word " * 80, echo=True, logprobs=20, max_tokens=0)
    with stream:
        data = b""
        while b"[DONE]" not in data:
            data += stream.recv(1 << 16) or pytest.fail("it ended")
    server.wait_until_idle()


def test_a_client_that_leaves_while_its_prompt_is_scored(server):
    import json

    body = json.dumps({"prompt": ["word " * 80] * 16, "echo": True, "logprobs": 20}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    before = server.wait_until_idle()
    with server.send(head % len(body) + body):
        while not server.metrics()["bitnet_sequences"]:
            pass
    assert (
        server.wait_until_idle()["bitnet_cancelled_total"] == before["bitnet_cancelled_total"] + 1
    )


def test_what_lm_eval_asks_first(server, model):
    about = server.get("/tokenizer_info").json
    assert about["eos_token"] == model.tokenizer.token(model.tokenizer.eos_ids[0])
    assert about["chat_template"] == model.tokenizer.chat_template.source
    assert about["model_max_length"] == model.context


def test_the_names_of_the_tokens_that_begin_and_end_a_text(server, model):
    """lm-eval asks for their ids, to put one in front of a text without context."""
    about, tokenizer = server.get("/tokenizer_info").json, model.tokenizer
    for name, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_ids[0])):
        asked = {"prompt": about[name], "add_special_tokens": False}
        assert server.post("/tokenize", asked).json["tokens"] == [token_id]
        text = server.post("/tokenize", asked | {"add_special_tokens": True}).json["tokens"]
        assert text == tokenizer.encode(about[name]) and token_id not in text[1:]
