"""Clients that people have, unchanged, against a real server: LangChain, `llm` and curl.

Each is skipped where it is not installed: `pip install langchain-openai llm` (CONTRIBUTING.md).
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from support.server_process import NO_END, USER, ServerProcess

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
