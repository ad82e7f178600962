"""/openapi.json: valid, of all endpoints, equal to what the server checks; /docs shows it."""

import asyncio
import contextlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from support.paths import DATA
from support.server_process import USER, ServerProcess

from bitnet.server.access_policy import OPEN_FOLDER, OPEN_ROUTES
from bitnet.server.app import ENDPOINTS
from bitnet.server.openapi import OPERATIONS, document

jsonschema = pytest.importorskip("jsonschema")

KEY = "a key of this server"
EMBEDDER = next((DATA / "gguf_i2_s_embedding_qwen3").glob("*.gguf"))
MESSAGES = {"messages": USER, "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "f", "description": None, "later": 1}}

# path: bodies that are taken; and some that are not
GOOD = {
    "/v1/chat/completions": [
        MESSAGES, MESSAGES | {"stop": "x", "seed": -1, "logit_bias": {"3": 1.5}, "later": 1},
        MESSAGES | {"tools": [TOOL], "tool_choice": "none", "top_k": -1, "n": 2},
    ],
    "/v1/completions": [{"prompt": "x", "max_tokens": 2}, {"prompt": [3, 4], "max_tokens": 2}],
    "/v1/responses": [{"input": "x", "max_output_tokens": 4}],
    "/v1/messages": [MESSAGES],
    "/v1/messages/count_tokens": [{"messages": USER}],
    "/v1/embeddings": [{"input": ["a", "b"]}, {"input": "a", "encoding_format": "base64"}],
    "/tokenize": [{"prompt": "x"}, {"messages": USER}],
    "/detokenize": [{"tokens": [5, 6]}],
}  # fmt: skip
BAD = {
    "/v1/chat/completions": [
        {}, {"messages": []}, MESSAGES | {"temperature": -1}, MESSAGES | {"n": 0},
        MESSAGES | {"top_p": 2}, MESSAGES | {"stop": ["x"] * 17}, MESSAGES | {"seed": "x"},
        MESSAGES | {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        MESSAGES | {"reasoning_effort": "some"}, {"messages": [{"content": "x"}]},
    ],
    "/v1/completions": [{}, {"prompt": []}, {"prompt": [-1]}, {"prompt": "x", "logprobs": 99}],
    "/v1/responses": [{"input": "x", "top_logprobs": 99}],
    "/v1/messages": [{"messages": USER}],
    "/v1/messages/count_tokens": [{}],
    "/v1/embeddings": [{}, {"input": "x", "dimensions": 0}],
    "/tokenize": [{"prompt": 1}],
    "/detokenize": [{}, {"tokens": ["x"]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 2, "--embedding-model", EMBEDDER) as one:
        yield one


@pytest.fixture(scope="module")
def found(server):
    answer = server.get("/openapi.json")
    assert answer.status == 200
    return answer.json


def validator(found, ref):
    """Of a part of the document."""
    return jsonschema.Draft202012Validator(found | ref)


@pytest.mark.parametrize("has_keys", [False, True])
@pytest.mark.parametrize("is_strict", [False, True])
def test_it_is_valid(has_keys, is_strict):
    validate = pytest.importorskip("openapi_spec_validator").validate
    validate(document(has_keys, is_strict))


def test_every_endpoint_is_in_it(found):
    assert list(OPERATIONS) == [(method, path) for method, path, _ in ENDPOINTS]
    shown = {(m.upper(), path) for path, one in found["paths"].items() for m in one}
    assert shown == {(m, re.sub(r":\w+}", "}", path)) for m, path, _ in ENDPOINTS}
    is_open = {path for (_, path), one in OPERATIONS.items() if one.is_open}
    assert is_open == {*OPEN_ROUTES, f"{OPEN_FOLDER}{{name:path}}"}


@pytest.mark.parametrize("entry", ENDPOINTS, ids=lambda entry: " ".join(entry[:2]))
def test_a_body_is_parsed_as_the_document_says(entry):
    method, path, endpoint = entry
    kinds = []

    class Stop(Exception):
        pass

    class Service:
        async def parse(self, request, kind):
            kinds.append(kind)
            raise Stop

        def __getattr__(self, name):
            raise Stop

    names = {"name": "index.html", "response_id": "resp_1"}
    request = SimpleNamespace(headers={}, path_params=names, query_params={})
    with contextlib.suppress(Stop):
        asyncio.run(endpoint(Service(), request))
    expected = OPERATIONS[method, path].request
    assert kinds == ([] if expected is None else [expected])


@pytest.mark.parametrize("path", GOOD)
def test_the_document_and_the_server_take_the_same(server, found, path):
    operation = found["paths"][path]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    replies = operation["responses"]
    for content in GOOD[path]:
        validator(found, body).validate(content)
        answer = server.post(path, content)
        assert answer.status == 200, answer.body
        reply = replies["200"]["content"]["application/json"]["schema"]
        validator(found, reply).validate(answer.json)
    for content in BAD[path]:
        assert not validator(found, body).is_valid(content), content
        answer = server.post(path, content)
        assert answer.status == 400
        wrong = replies["default"]["content"]["application/json"]["schema"]
        validator(found, wrong).validate(answer.json)


def test_what_is_asked_for_by_get(server, found):
    for path, operations in found["paths"].items():
        if "get" not in operations or "{response_id}" in path:  # it has to be kept first
            continue
        name = "index.html" if path.startswith(OPEN_FOLDER) else "bundled"
        answer = server.get(path.replace("{name}", name))
        assert answer.status == 200
        (content,) = operations["get"]["responses"]["200"]["content"].items()
        assert content[0] in (answer.headers.get_content_type(), "*/*")
        if content[1]["schema"]:
            validator(found, content[1]["schema"]).validate(answer.json)


def test_strict_servers_say_so():
    for is_strict in (False, True):
        schemas = document(False, is_strict)["components"]["schemas"]
        wrong = {"messages": [{"role": "user", "content": "x", "later": 1}]}
        check = validator(document(False, is_strict), schemas["ChatRequest"])
        assert check.is_valid(wrong) is not is_strict


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.words = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids |= {given["id"]} if "id" in given else set()
        self.links += [given[name] for name in ("href", "src") if name in given]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page(server, found):
    answer = server.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    page = Reader(answer.body.decode())
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert {link for link in page.links if link[0] != "#"} == {"openapi.json"}
    assert {link[1:] for link in page.links if link[0] == "#"} <= page.ids
    assert page.ids == set(found["components"]["schemas"])
    text = " ".join(page.words)
    assert all(path in text for path in found["paths"]) and "from -2.0, to 2.0" in text
    assert "Needs a key" not in text


def test_keys_are_asked_for_where_there_are_any():
    with ServerProcess("--api-key", KEY) as server:
        found = server.get("/openapi.json").json
        for path, operations in found["paths"].items():
            for method, operation in operations.items():
                needs = server.request(method.upper(), path.replace("{name}", "x"), b"{}")
                assert (needs.status == 401) == ("security" in operation), path
        assert "Needs a key" in server.get("/docs").body.decode()
        assert KEY not in server.get("/docs").body.decode()


def test_a_client_that_is_generated_from_it(server, tmp_path):
    """openapi-python-client writes a package from the document; it is used as it is."""
    pytest.importorskip("openapi_python_client")
    source, folder = tmp_path / "openapi.json", tmp_path / "made"
    source.write_bytes(server.get("/openapi.json").body)
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(source)]
    done = subprocess.run(
        [*command, "--output-path", str(folder), "--meta", "none"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unsupported" not in done.stdout.lower() and "Warning" not in done.stdout, done.stdout
    code = f"""
from made import Client
from made.api.default import chat, models, tokenize
from made.models import ChatRequest, Message, TokenizeRequest
client = Client("http://127.0.0.1:{server.port}")
body = ChatRequest(messages=[Message(role="user", content="Who goes there?")], max_tokens=4, seed=1)
reply = chat.sync(client=client, body=body)
assert reply.usage.completion_tokens > 0, reply
print(reply.choices[0].message.content)
assert models.sync(client=client).data[0].id == "bundled"
assert tokenize.sync(client=client, body=TokenizeRequest(prompt="x")).count == 2
"""
    used = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    expected = server.chat(max_tokens=4, seed=1).json["choices"][0]["message"]["content"]
    assert used.stdout.rstrip("\n") == expected
