"""The server's endpoints, on a real process: OpenAI's client, plain HTTP, bitnet-tiny."""

import base64
import importlib
import inspect
import pkgutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from support.paths import DATA
from support.server_process import NO_END, USER, ServerProcess, openai_client

import bitnet
from bitnet.server import endpoints
from bitnet.server.app import ENDPOINTS
from bitnet.server.openai_chunks import TextChunks
from bitnet.server.worker import Event

EMBEDDER = DATA / "gguf_i2_s_embedding_qwen3"


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 4) as one:
        yield one


@pytest.fixture(scope="module")
def client(server):
    return openai_client(server)


def test_every_endpoint_is_in_the_table():
    """An endpoint is a function in a file of server/endpoints, and a line of app.ENDPOINTS."""
    found = set()
    for file in pkgutil.iter_modules(endpoints.__path__):
        module = importlib.import_module(f"{endpoints.__name__}.{file.name}")
        found |= {
            function
            for name, function in inspect.getmembers(module, inspect.iscoroutinefunction)
            if function.__module__ == module.__name__ and not name.startswith("_")
        }
    assert found == {endpoint for _, _, endpoint in ENDPOINTS}


# ---------------------------------------------------------------------------------- OpenAI's client
def test_openai_chat(client, model):
    reply = client.chat.completions.create(
        model="bundled", messages=USER, max_completion_tokens=20, seed=3, temperature=0.7
    )
    expected = model.chat(USER, max_tokens=20, seed=3, temperature=0.7)
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == expected.prompt_tokens
    assert reply.usage.completion_tokens == expected.completion_tokens
    assert reply.usage.total_tokens == expected.prompt_tokens + expected.completion_tokens


def test_openai_chat_stream(client, model):
    with client.chat.completions.create(
        model="bundled", messages=USER, max_tokens=20, seed=4, stream=True,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == model.chat(USER, max_tokens=20, seed=4).text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens and not chunks[-1].choices


def test_openai_text_and_models(client, model):
    reply = client.completions.create(model="bundled", prompt="It was", max_tokens=9, seed=1)
    assert reply.choices[0].text == model.generate("It was", max_tokens=9, seed=1).text
    assert [m.id for m in client.models.list()] == ["bundled"]
    assert client.models.retrieve("bundled").id == "bundled"


def test_openai_errors(client):
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="bundled", messages=USER, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


def test_openai_embeddings():
    openai = pytest.importorskip("openai")
    path = next(EMBEDDER.glob("*.gguf"))
    texts = ["one", "a second one", "third"]
    with ServerProcess(path, "--slots", 2) as server, bitnet.load(path) as model:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
        reply = client.embeddings.create(model=path.stem, input=texts)  # asks for base64
        rows = np.array([entry.embedding for entry in reply.data], np.float32)
        assert rows.tobytes() == model.embed(texts).tobytes()
        answer = server.post("/v1/embeddings", {"input": texts[1]})
        row = np.array(answer.json["data"][0]["embedding"], np.float32)
        assert row.tobytes() == rows[1].tobytes()
        ids = model.tokenizer.encode(texts[1])  # without the end token: it is added
        fields = {"input": [ids, ids[:1]], "encoding_format": "base64"}
        answer = server.post("/v1/embeddings", fields)
        data = base64.b64decode(answer.json["data"][0]["embedding"])
        assert data == rows[1].tobytes()
        whole = model.tokenizer.encode(texts[1], add_eos=True)
        again = server.post("/v1/embeddings", {"input": whole}).json["data"][0]["embedding"]
        assert again == answer_of(server, texts[1])
        many = server.post("/v1/embeddings", {"input": ["a"] * 2048, "dimensions": 4})
        assert len(many.json["data"]) == 2048
        short = np.array(many.json["data"][7]["embedding"])
        full = model.embed("a")[:4]
        np.testing.assert_allclose(short, full / np.linalg.norm(full), rtol=1e-6)
        for name, prompt in model.prompts.items():
            assert answer_of(server, "x", prompt_name=name) == answer_of(server, prompt + "x")
        for fields, param in (
            ({"prompt_name": "nothing"}, "prompt_name"), ({"dimensions": 10**6}, "dimensions"),
            ({"input": ["a"] * 2049}, "input"), ({"encoding_format": "int8"}, "encoding_format"),
            ({"input": ids, "prompt_name": next(iter(model.prompts), "x")}, "prompt_name"),
        ):  # fmt: skip
            answer = server.post("/v1/embeddings", {"input": "a"} | fields)
            assert (answer.status, answer.json["error"]["param"]) == (400, param)
        # LangChain's default: token ids of the model it names, made by tiktoken
        encode, decode = model.tokenizer.encode, model.tokenizer.decode
        pairs = ([a, b] for a in range(20, 260) for b in range(20, 260))
        split = next(pair for pair in pairs if encode(decode(pair)) != pair)
        for foreign in ({"input": [ids], "model": "text-embedding-ada-002"},
                        {"input": [[10**6]]}, {"input": [split]}):  # fmt: skip
            answer = server.post("/v1/embeddings", foreign)
            assert "check_embedding_ctx_length=False" in answer.json["error"]["message"]
        for wrong in ([], [[]], ["a", 1], [-1], "x" * 1_000_000, [["a"]], {}):
            assert server.post("/v1/embeddings", {"input": wrong}).status == 400
        assert server.chat().status == 400


def answer_of(server, text, **fields):
    return server.post("/v1/embeddings", {"input": text} | fields).json["data"][0]["embedding"]


# ---------------------------------------------------------------------------------- what it returns
def test_a_request_gives_the_same_text_alone_and_in_a_full_batch(server):
    prompts = ["It was", "He said that", "The king " * 20, "a", "Once upon a time there was a"] * 4

    def text(i):
        fields = {"prompt": prompts[i], "seed": i, "max_tokens": 60, "temperature": 0.9}
        return server.post("/v1/completions", fields).json["choices"][0]["text"]

    alone = [text(i) for i in range(len(prompts))]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(text, range(len(prompts)))) == alone


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_whole_is_the_fold_of_the_stream(server, path):
    fields = {"seed": 5, "max_tokens": 12, "n": 2, "logprobs": True, "top_logprobs": 2}
    fields |= {"messages": USER, "temperature": 0.8}
    if path == "/v1/completions":
        fields |= {"prompt": ["So", "And"], "logprobs": 2}
        del fields["messages"], fields["top_logprobs"]
    whole = server.post(path, fields).json["choices"]
    chunks = server.chunks(path, **fields)
    assert len(whole) == (2 if "messages" in fields else 4)
    for index, choice in enumerate(whole):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        pieces = [p["text"] if "text" in p else p["delta"].get("content", "") for p in parts]
        assert "".join(pieces) == (choice.get("text") or choice["message"]["content"])
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        probs = [p["logprobs"] for p in parts if p.get("logprobs")]
        for key, values in choice["logprobs"].items():
            if values:
                assert [v for p in probs for v in p[key]] == values


def test_logprobs(server, model):
    fields = {"prompt": "It was", "max_tokens": 6, "logprobs": 3, "temperature": 0}
    found = server.post("/v1/completions", fields).json["choices"][0]["logprobs"]
    ids = model.tokenizer.encode("It was")
    for token, own, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        logits = model.logits(ids)[-1].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert own == pytest.approx(expected.max(), abs=1e-5) and top[token] == own
        assert sorted(top.values()) == pytest.approx(np.sort(expected)[-3:], abs=1e-5)
        ids.append(int(expected.argmax()))
    content = server.chat(logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert all(e["top_logprobs"] == [] and bytes(e["bytes"]).decode() for e in content)


def test_logprobs_of_parts_of_characters(server, model):
    """text_offset counts characters of the text; a part of one is told by its bytes."""
    fields = {"prompt": "It", "max_tokens": 12, "logprobs": 3, "temperature": 8, "seed": 0}
    (c3, a9) = model.tokenizer.encode("é", add_bos=False)
    choice = server.post("/v1/completions", fields | {"logit_bias": {c3: 60, a9: 60}}).json[
        "choices"
    ]
    text, found = choice[0]["text"], choice[0]["logprobs"]
    assert "é" in text
    decoder, at = model.tokenizer.stream(), 0
    for name, offset, top in zip(
        found["tokens"], found["text_offset"], found["top_logprobs"], strict=True
    ):
        assert offset == at and len(top) == 3
        data = bytes.fromhex(name[6:].replace("\\x", "")) if name[:6] == "bytes:" else name.encode()
        (token_id,) = [i for i in range(2048) if model.tokenizer.token_bytes(i) == data]
        at += len(decoder.push(token_id))
    assert at <= len(text) and {"bytes:\\xc3", "bytes:\\xa9"} <= set(found["tokens"])


def test_tokens_of_one_text_have_a_name_each():
    spelled = {5: ("A", b"A"), 6: ("A", b"A"), 7: ("A", b"A"), 8: ("\ufffd", b"\xf0"), 9: ("", b"")}
    chunks = TextChunks("m", spelled.get, True, lambda: SimpleNamespace(push=lambda _: ""))
    entries = ([(6, -0.5), (5, -0.1), (6, -0.5), (7, -0.6), (8, -0.7), (9, -1.0)],)
    (chunk,) = chunks.chunks(Event(0, "", entries))
    found = chunk["choices"][0]["logprobs"]
    assert found["tokens"] == ["A"]
    assert found["top_logprobs"] == [
        {"bytes:\\x41": -0.1, "A": -0.5, "token_id:7": -0.6, "bytes:\\xf0": -0.7, "": -1.0}
    ]


def test_stop_usage_and_reasons(server):
    text = server.chat(seed=1, max_tokens=40).json["choices"][0]["message"]["content"]
    stop = text[4:7]
    cut = server.chat(seed=1, max_tokens=40, stop=[stop, "zzz"]).json["choices"][0]
    assert cut["message"]["content"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"
    one = server.chat(max_tokens=3, logit_bias=NO_END).json
    assert one["choices"][0]["finish_reason"] == "length"
    assert one["usage"]["completion_tokens"] == 3
    assert one["timings"]["total_ms"] >= one["timings"]["first_token_ms"] > 0
    full = server.chat(max_tokens=None, logit_bias=NO_END).json  # until the context is full
    assert full["choices"][0]["finish_reason"] == "length"
    assert full["usage"]["total_tokens"] in (512, 513)


def test_what_ordinary_clients_send(server):
    likeliest = server.chat(temperature=0).json["choices"]
    assert server.chat(temperature=2, top_p=0, reasoning_effort="low").json["choices"] == likeliest


def test_prefixes_are_reused(server):
    long = [{"role": "system", "content": "Speak plainly. " * 20}, *USER]
    first, second = (server.chat(messages=long, seed=1).json for _ in range(2))
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == second["usage"]["prompt_tokens"] - 1
    assert second["choices"] == first["choices"]


def test_penalties_and_bias(server):
    fields = {"prompt": "the the the", "temperature": 0, "max_tokens": 40, "logit_bias": NO_END}
    plain = server.post("/v1/completions", fields).json["choices"][0]["text"].split()
    fields |= {"frequency_penalty": 2, "presence_penalty": 2}
    varied = server.post("/v1/completions", fields).json["choices"][0]["text"].split()
    assert len(set(varied)) / len(varied) > len(set(plain)) / len(plain)
    fields = {"prompt": "It", "max_tokens": 3, "logit_bias": {"300": 100}, "temperature": 0}
    assert len(set(server.post("/v1/completions", fields).json["choices"][0]["text"].split())) <= 1


def test_tokens(server, model):
    ids = server.post("/tokenize", {"prompt": "It was <|eot_id|>"}).json
    assert ids["tokens"] == model.tokenizer.encode("It was <|eot_id|>")
    assert ids["count"] == len(ids["tokens"]) and ids["max_model_len"] == 512
    assert not set(ids["tokens"][1:]) & {2045, 2046, 2047}  # written by a user: text
    text = server.post("/detokenize", {"tokens": ids["tokens"]}).json["prompt"]
    assert text == "It was <|eot_id|>"
    chat = server.post("/tokenize", {"messages": USER}).json["tokens"]
    assert chat == model.tokenizer.chat(USER)
    assert server.post("/detokenize", {"tokens": [99999]}).status == 400
    assert server.post("/tokenize", {}).json["error"]["param"] == "prompt"


def test_content_parts_and_harmless_fields(server):
    parts = [{"type": "text", "text": "Who goes "}, {"type": "text", "text": "there?"}]
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": True, "tools": None, "n": None,
                "response_format": {"type": "text"}, "service_tier": "auto"}  # fmt: skip
    messages = [{"role": "user", "content": parts}]
    assert (
        server.chat(messages=messages, seed=1, **harmless).json["choices"]
        == server.chat(seed=1).json["choices"]
    )


def test_small_endpoints(server):
    assert server.get("/health").json == {"status": "ok"}
    assert server.get("/ready").json == {"status": "ready"}
    page = server.get("/")
    assert page.headers.get_content_type() == "text/html"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    found = server.metrics()
    assert found['bitnet_tokens_total{kind="generated"}'] > 0
    assert found['bitnet_pool_bytes{purpose="kv"}'] > 0
    assert server.post("/v1/embeddings", {"input": "x"}).json["error"]["param"] == "model"
    assert server.get("/v1/nothing").json["error"]["message"] == "Not Found"
    assert server.get("/v1/chat/completions").status == 405
