"""The application in other servers, under a prefix, and two models in one process."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from support.paths import DATA
from support.server_process import USER, ServerProcess

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import MemoryLimitExceeded
from bitnet.models.transformer import Transformer
from bitnet.server import Options, asgi

EMBEDDER = DATA / "gguf_i2_s_embedding_qwen3"
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


@pytest.fixture(scope="module")
def embedder():
    (path,) = EMBEDDER.glob("*.gguf")
    return path


def call(app, method, path, body=None, root="", headers=()):
    """The answer of an ASGI application to one request."""

    async def run():
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "path": root + path, "root_path": root, "query_string": b"", "scheme": "http",
            "headers": [(b"host", b"localhost"), *headers], "client": None, "server": None,
        }  # fmt: skip
        data, sent = b"" if body is None else json.dumps(body).encode(), []
        messages = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        start = sent[0]
        content = b"".join(message.get("body", b"") for message in sent[1:])
        is_json = dict(start["headers"]).get(b"content-type") == b"application/json"
        return SimpleNamespace(
            status=start["status"], body=content, json=json.loads(content) if is_json else None
        )

    return run()


def test_a_model_and_a_prefix(model):
    """A Model that is loaded stays its owner's; paths are those behind the prefix."""
    app = asgi(model, Options(model_names=("ours",), api_key="a key of ours"))
    key = [(b"authorization", b"Bearer a key of ours")]
    body = {"messages": USER, "max_tokens": 4, "temperature": 0}

    async def run():
        assert (await call(app, "GET", "/health")).status == 503  # not started
        unready = await call(app, "POST", "/v1/messages", {})
        assert unready.json["error"]["type"] == "overloaded_error"
        async with app.lifespan():
            for root in ("", "/llm", "/a/b"):
                assert (await call(app, "GET", "/health", root=root)).status == 200
                assert (await call(app, "GET", "/", root=root)).status == 200
                assert (await call(app, "POST", CHAT, body, root=root)).status == 401
                found = await call(app, "POST", CHAT, body, root=root, headers=key)
                assert found.json["model"] == "ours"
                refused = await call(app, "POST", "/v1/messages", {}, root=root, headers=key)
                assert refused.json["type"] == "error"
            assert (await call(app, "GET", "/llm/health")).status == 401  # no prefix of ours
            with pytest.raises(RuntimeError, match="runs already"):
                async with app.lifespan():
                    pass
        assert (await call(app, "GET", "/health")).status == 503
        return found

    found = asyncio.run(run())
    expected = model.chat(USER, max_tokens=4, temperature=0).text  # it is open still
    assert found.json["choices"][0]["message"]["content"] == expected
    with contextlib.closing(asyncio.new_event_loop()) as loop:  # and may be served again

        async def again():
            async with app.lifespan():
                return await call(app, "GET", "/v1/models", headers=key)

        assert loop.run_until_complete(again()).status == 200


def test_mounted_in_another_application():
    starlette = pytest.importorskip("starlette.applications")
    from starlette.routing import Mount

    ours = asgi(slots=1)
    outer = starlette.Starlette(routes=[Mount("/llm", ours)], lifespan=ours.lifespan)

    async def run():
        async with outer.router.lifespan_context(outer):
            found = await call(outer, "POST", "/llm" + CHAT, {"messages": USER, "max_tokens": 2})
            return found, await call(outer, "GET", "/llm/v1/models")

    found, models = asyncio.run(run())
    assert found.status == 200 and models.json["data"][0]["id"] == "bundled"


def test_what_cannot_be_an_application(model, embedder):
    for arguments, options, error in (
        ((model,), {"slots": 2}, "slots"),
        ((model,), {"embedding_model": embedder}, "embedding_model"),
        ((), {"slots": 0}, "slots"),
    ):
        with pytest.raises(ValueError, match=error):
            asgi(*arguments, **options)
    with pytest.raises(TypeError):
        asgi(nonsense=1)


def test_a_lifespan_that_fails_says_why(tmp_path):
    async def run():
        sent = []

        async def receive():
            return {"type": "lifespan.startup"}

        async def send(message):
            sent.append(message)

        await asgi(tmp_path / "none.gguf")({"type": "lifespan"}, receive, send)
        return sent

    (message,) = asyncio.run(run())
    assert message["type"] == "lifespan.startup.failed" and "none.gguf" in message["message"]


# -------------------------------------------------------------------------------------- two models
def test_two_models_in_one_process(embedder):
    options = ("--embedding-model", embedder, "--embedding-name", "vectors")
    with ServerProcess(*options, "--slots", 2) as server:
        assert "serving bundled and vectors on" in server.log()
        names = [one["id"] for one in server.get("/v1/models").json["data"]]
        assert names == ["bundled", "vectors"]
        assert server.get("/v1/models/vectors").json["id"] == "vectors"
        texts = ["who goes", "there"]
        with bitnet.load(embedder) as alone:
            expected = alone.embed(texts).tolist()
        for name in ({}, {"model": "vectors"}):
            found = server.post(EMBED, {"input": texts} | name).json
            assert [one["embedding"] for one in found["data"]] == expected
            assert found["model"] == "vectors"
        assert server.chat().json["model"] == "bundled"
        for path, body in (
            (CHAT, {"messages": USER, "model": "vectors"}),
            ("/v1/messages", {"messages": USER, "model": "vectors", "max_tokens": 2}),
            ("/v1/responses", {"input": "x", "model": "vectors"}),
            (EMBED, {"input": "x", "model": "bundled"}),
        ):
            assert server.post(path, body).status == 400
        assert server.post(EMBED, {"input": "x", "model": "others"}).status == 404
        counts = [
            server.post("/tokenize", {"prompt": "who goes there?", "model": name}).json["tokens"]
            for name in ("bundled", "vectors")
        ]
        assert counts[0] != counts[1]
        assert server.metrics()["bitnet_pool_limit_bytes"] > 0


def test_one_memory_limit_for_both(embedder):
    def needs(path):
        with bitnet.load(path, slots=1) as one:
            return sum(n.nbytes for n in one.needs if n.where != "files")

    first, second = needs(None), needs(embedder)
    limit = first + second + (4 << 20)
    both = asgi(embedding_model=embedder, slots=1, memory_limit=limit)

    async def run():
        async with both.lifespan():
            text = (await call(both, "GET", "/metrics")).body.decode()
            limits = re.findall(r"^bitnet_pool_limit_bytes{model=.*} (.*)", text, re.M)
            assert len(limits) == 2
            return sum(map(float, limits))

    assert asyncio.run(run()) <= limit
    too_little = asgi(embedding_model=embedder, slots=1, memory_limit=max(first, second) + 1)
    with pytest.raises(MemoryLimitExceeded):
        asyncio.run(_start(too_little))
    with pytest.raises(ValueError, match="no embedding model"):
        asyncio.run(_start(asgi(embedding_model=BUNDLED_MODEL)))
    same = Options(model_names=("one",), embedding_name="one")
    with pytest.raises(ValueError, match="called 'one'"):
        asyncio.run(_start(asgi(options=same, embedding_model=embedder)))
    assert open_checkpoint(embedder).config.pooling is not None


async def _start(app):
    async with app.lifespan():
        pass


# ------------------------------------------------------------------------------------ other servers
SERVERS = {
    "uvicorn": ["uvicorn", "--port", "{port}", "app:app"],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}", "app:app"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}", "app:app"],
}
APP = """
from bitnet.server import Options, asgi
app = asgi(None, Options(model_names=("ours",)), threads=1, slots=2)
"""


@pytest.mark.parametrize("name", SERVERS)
def test_in_another_server(name, tmp_path):
    pytest.importorskip(name)
    import http.client
    import socket

    (tmp_path / "app.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *(part.replace("{port}", str(port)) for part in SERVERS[name])]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        server = SimpleNamespace(port=port, host="127.0.0.1")

        def ask(method, path, body=None):
            with contextlib.closing(http.client.HTTPConnection(server.host, port, 30)) as one:
                one.request(method, path, body and json.dumps(body))
                answer = one.getresponse()
                return answer.status, answer.read()

        while True:
            assert process.poll() is None, process.stderr.read().decode()
            try:
                if ask("GET", "/ready")[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        body = {"messages": USER, "max_tokens": 8, "seed": 1}
        status, whole = ask("POST", CHAT, body)
        assert status == 200
        status, streamed = ask("POST", CHAT, body | {"stream": True})
        assert status == 200 and streamed.endswith(b"data: [DONE]\n\n")
        chunks = [json.loads(line[6:]) for line in streamed.split(b"\n\n")[:-2] if line[:1] == b"d"]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        assert text == json.loads(whole)["choices"][0]["message"]["content"]
        assert ask("POST", CHAT, {"messages": []})[0] == 400
    finally:
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert b"Traceback" not in log, log.decode()


def test_an_echo_with_logprobs_reads_its_prompt_once(monkeypatch):
    text = "And the king said unto him, Whence comest thou? " * 8
    n_read, forward = [], Transformer.forward

    def counted(self, token_ids, *arguments, **options):
        n_read.append(len(token_ids))
        return forward(self, token_ids, *arguments, **options)

    async def run(app):
        async with app.lifespan():
            body = {"prompt": text, "echo": True, "logprobs": 1, "temperature": 0, "n": 2}
            for n_tokens in (3, 0):
                n_read.clear()
                found = await call(app, "POST", "/v1/completions", body | {"max_tokens": n_tokens})
                assert found.status == 200
                used = found.json["usage"]
                n_prompt = used["prompt_tokens"]
                assert n_prompt == len(model.encode_prompt(text)) > 64
                # each token of the prompt, the last of it for each choice, and each that follows
                rest = 2 * max(0, n_tokens - 1)
                assert sum(n_read) == n_prompt - 1 + 2 + rest
                assert used["prompt_tokens_details"]["cached_tokens"] == 0
            fields = {"prompt": text, "temperature": 0, "max_tokens": 3}
            plain = (await call(app, "POST", "/v1/completions", fields)).json
            assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == n_prompt - 1

    with bitnet.load(threads=1, slots=2) as model:
        model.generate("x", max_tokens=1)  # the first pass looks for damaged weights
        monkeypatch.setattr(Transformer, "forward", counted)
        asyncio.run(run(asgi(model, Options())))
