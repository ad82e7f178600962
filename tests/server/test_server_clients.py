"""Clients that people have, unchanged, against a real server.

Each is skipped where it is not installed: `.ci/long clients` installs all of them, with what
docs/server.md says of each. The bundled model is too small to do what it is told, so that whatever
comes out right is the grammar's doing.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.paths import DATA
from support.server_process import NO_END, USER, ServerProcess, openai_client

import bitnet

ASKED = USER[0]["content"]


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 2) as one:
        yield one


@pytest.fixture(scope="module")
def chat(server):
    langchain = pytest.importorskip("langchain_openai")

    def make(**options):
        url = f"http://127.0.0.1:{server.port}/v1"
        options = {"seed": 3, "temperature": 0.7} | options
        return langchain.ChatOpenAI(model="bundled", base_url=url, api_key="none", **options)

    return make


def test_langchain(chat, model):
    expected = model.chat(USER, max_tokens=20, temperature=0.7, seed=3)
    found = chat(max_tokens=20).invoke(ASKED)
    assert found.content == expected.text
    assert found.usage_metadata["output_tokens"] == expected.completion_tokens
    assert "".join(c.content for c in chat(max_tokens=20).stream(ASKED)) == expected.text


def test_langchain_tools_and_formats(chat):
    pytest.importorskip("llguidance")

    def speak(loudly: bool, again: bool) -> None:
        """Say something."""

    (call,) = chat(max_tokens=150).bind_tools([speak], tool_choice="speak").invoke(ASKED).tool_calls
    assert call["name"] == "speak" and set(call["args"]) == {"loudly", "again"}
    shape = {
        "title": "Reply",
        "description": "whether it is so",
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    found = chat(max_tokens=50).with_structured_output(shape, method="json_schema").invoke(ASKED)
    assert set(found) == {"sure"}


def test_langchain_responses(chat, model):
    options = {"seed": None, "temperature": 0, "use_responses_api": True}
    found = chat(max_tokens=20, **options).invoke(ASKED)
    assert found.text == model.chat(USER, max_tokens=20, temperature=0).text


def test_llm(server, model, tmp_path):
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: bundled\n  api_base: http://127.0.0.1:{server.port}/v1\n"
    )
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "ours",
        "-o",
        "seed",
        "3",
        "-o",
        "max_tokens",
        "20",
    ]
    expected = model.chat(USER, max_tokens=20, seed=3).text
    for streams in ([], ["--no-stream"]):
        done = subprocess.run(
            [*command, *streams, ASKED],
            capture_output=True,
            text=True,
            env=os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
        )
        assert done.stdout.strip() == expected.strip(), done.stderr


def test_curl(server, model):
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    body = {"messages": USER, "max_tokens": 8, "seed": 1, "logit_bias": NO_END}
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    command = [
        "curl",
        "--silent",
        "--no-buffer",
        url,
        "--data",
        json.dumps(body | {"stream": True}),
    ]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    bias = {int(token): value for token, value in NO_END.items()}
    assert text == model.chat(USER, max_tokens=8, seed=1, logit_bias=bias).text


# ---------------------------------------------------------------- structured output of others
SURE = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "level": {"type": ["integer", "null"]}},
    "required": ["sure"],
}


@pytest.fixture
def sure():
    """A class of pydantic's, as these clients want one: no word of additionalProperties."""
    pydantic = pytest.importorskip("pydantic")
    return pydantic.create_model("Sure", sure=(bool, ...), level=(int | None, None))


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_instructor(server, sure, mode):
    instructor = pytest.importorskip("instructor")
    client = instructor.from_openai(openai_client(server), mode=getattr(instructor.Mode, mode))
    found = client.chat.completions.create(
        model="any", response_model=sure, messages=USER, max_tokens=80, max_retries=0
    )
    assert isinstance(found, sure)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_langchain_classes(chat, sure, method):
    assert isinstance(
        chat(max_tokens=80).with_structured_output(sure, method=method).invoke("x"), sure
    )


@pytest.mark.parametrize("native", [False, True])
def test_pydantic_ai(server, sure, native):
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(openai_client=async_client(server))
    model = OpenAIChatModel("bundled", provider=provider)
    output = pydantic_ai.NativeOutput(sure) if native else sure
    agent = pydantic_ai.Agent(model, output_type=output, model_settings={"max_tokens": 90})
    assert isinstance(agent.run_sync("Sure?").output, sure)


def async_client(server):
    openai = pytest.importorskip("openai")
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")


@pytest.mark.parametrize("shape", [
    {"type": "json", "value": SURE},
    {"type": "json_schema", "json_schema": {"name": "Sure", "schema": SURE, "strict": True}},
])  # fmt: skip
def test_the_hub_s_client(server, shape):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("llguidance")
    client = hub.InferenceClient(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    found = client.chat_completion(USER, max_tokens=80, response_format=shape)
    assert {"sure"} <= json.loads(found.choices[0].message.content).keys() <= {"sure", "level"}


def test_llm_schema(server, tmp_path):
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: bundled\n  supports_schema: true\n"
        f"  api_base: http://127.0.0.1:{server.port}/v1\n"
    )
    command = [sys.executable, "-m", "llm", "-m", "ours", "--schema", "sure bool", ASKED]
    env = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert json.loads(done.stdout).keys() == {"sure"}, done.stderr


def test_litellm(server, sure, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network
    litellm = pytest.importorskip("litellm")

    def ask(content, **options):
        return litellm.completion(
            model="openai/any", api_base=f"http://127.0.0.1:{server.port}/v1", api_key="none",
            messages=[{"role": "user", "content": content}], num_retries=0, **options,
        )  # fmt: skip

    found = ask(ASKED, response_format=sure, max_tokens=80)
    assert isinstance(sure.model_validate_json(found.choices[0].message.content), sure)
    with pytest.raises(litellm.ContextWindowExceededError):
        ask("word " * 3000)


# ------------------------------------------------------------------------ scoring and embeddings
def test_lm_eval(server, model):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    url = f"http://127.0.0.1:{server.port}/v1/completions"
    harness = LocalCompletionsAPI(base_url=url, model="bundled", max_length=512)
    assert harness.tokenizer_backend == "remote"
    pairs = [("And the king said", " to him, go."), ("And the king said", " xyz"), ("It", " was")]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = harness.loglikelihood(asked, disable_tqdm=True)
    for pair, (logprob, is_greedy) in zip(pairs, found, strict=True):
        ids = [model.tokenizer.encode(part, add_bos=False) for part in (pair[0], "".join(pair))]
        expected = model.loglikelihood(ids[1][: len(ids[0])], ids[1][len(ids[0]) :])
        assert (logprob, is_greedy) == (pytest.approx(expected[0], abs=1e-9), expected[1])
    alone = Instance("loglikelihood", {}, ("", "And so"), 0)  # behind the begin token
    ((logprob, is_greedy),) = harness.loglikelihood([alone], disable_tqdm=True)
    ids = model.tokenizer.encode("And so")
    expected = model.loglikelihood(ids[:1], ids[1:])
    assert (logprob, is_greedy) == (pytest.approx(expected[0], abs=1e-9), expected[1])
    until = Instance("generate_until", {}, ("And so", {"until": ["."], "max_gen_toks": 9}), 0)
    assert harness.generate_until([until], disable_tqdm=True)


@pytest.fixture(scope="module")
def embedder():
    path = next((DATA / "gguf_i2_s_embedding_qwen3").glob("*.gguf"))
    with ServerProcess(path) as one, bitnet.load(path, threads=1) as model:
        yield f"http://127.0.0.1:{one.port}/v1", model


TEXTS = ["one", "a second one"]


def test_langchain_embeddings(embedder):
    langchain = pytest.importorskip("langchain_openai")
    url, model = embedder
    options = {"base_url": url, "api_key": "none", "check_embedding_ctx_length": False}
    found = langchain.OpenAIEmbeddings(model="any", **options).embed_documents(TEXTS)
    np.testing.assert_array_equal(np.array(found, np.float32), model.embed(TEXTS))


def test_llama_index_embeddings(embedder):
    module = pytest.importorskip("llama_index.embeddings.openai_like")
    url, model = embedder
    client = module.OpenAILikeEmbedding(model_name="any", api_base=url, api_key="none")
    found = client.get_text_embedding_batch(TEXTS)
    np.testing.assert_array_equal(np.array(found, np.float32), model.embed(TEXTS))
