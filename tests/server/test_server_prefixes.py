"""What a request reads of a prompt that begins like an earlier one: by counting tokens.

The first prompts of coding agents have 8,000 to 26,000 tokens, and each later one goes on from the
one before. New is what follows that: the reply as well, as far as it was written in other tokens
than its text has when it comes back, which a grammar can lead to.
"""

import signal
import stat

import pytest
from support.agent_requests import SHELL, claude_code, long_model
from support.server_process import ServerProcess

pytest.importorskip("llguidance")
RULES = "Look before you write, and say what you have found. " * 620  # some 8,000 tokens
FREE = (
    8  # tokens at a border: of two texts that are encoded together, and the one that must be read
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return long_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(path):
    """As it is without any option about prefixes."""
    with ServerProcess(path, "--model-name", "bundled", "--context", 12288, "--slots", 2) as one:
        yield one


def by_messages(server, *later, nonce, rules=RULES):
    """(tokens of the prompt, those of them that were read, the reply's turn)."""
    body = claude_code(nonce, *later) | {"stream": False, "seed": 4, "temperature": 0}
    body["system"] = [*body["system"][:2], {"type": "text", "text": rules}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    answer = server.post("/v1/messages", body | {"tool_choice": choice})
    assert answer.status == 200, answer.body
    used = answer.json["usage"]
    n_prompt = used["input_tokens"] + used["cache_read_input_tokens"]
    said = {"role": "assistant", "content": answer.json["content"]}
    return n_prompt, used["input_tokens"], said


def result_of(said):
    called = said["content"][-1]["id"]
    block = {"type": "tool_result", "tool_use_id": called, "content": "A line of the file. " * 5}
    return {"role": "user", "content": [block]}


def test_a_session_by_messages(server):
    n_before, n_read, said = by_messages(server, nonce="a1")
    assert n_before == n_read > 8000
    later = [said, result_of(said)]
    for nonce in ("b2", "c3"):
        n_prompt, n_read, said = by_messages(server, *later, nonce=nonce)
        assert 0 < n_read <= n_prompt - n_before + FREE < 250
        n_before = n_prompt
        later += [said, result_of(said)]


def test_a_session_by_responses(server):
    items = [{"role": "user", "content": "What is here?"}]
    asked = {"instructions": RULES, "tools": [SHELL], "tool_choice": "required", "store": False,
             "parallel_tool_calls": False, "temperature": 0, "max_output_tokens": 300}  # fmt: skip
    n_before = None
    for _ in range(3):
        answer = server.post("/v1/responses", asked | {"input": items})
        used, (call,) = answer.json["usage"], answer.json["output"]
        n_read = used["input_tokens"] - used["input_tokens_details"]["cached_tokens"]
        if n_before is not None:
            assert 0 < n_read <= used["input_tokens"] - n_before + FREE < 250
        n_before = used["input_tokens"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "setup.py"}
        items += [call, result]


def test_a_side_question_does_not_end_a_session(server):
    """Agents ask for titles in between: what begins otherwise has a slot of its own."""
    _, _, said = by_messages(server, nonce="d4")
    side = {"messages": [{"role": "user", "content": "A title, please."}], "max_tokens": 4}
    assert server.post("/v1/messages", side).status == 200
    n_prompt, n_read, _ = by_messages(server, said, result_of(said), nonce="e5")
    assert n_read < 250 < n_prompt


def test_over_a_restart(path, tmp_path):
    """With a folder: it is for its owner alone, and so are its files, which hold the prompts."""
    folder, rules = tmp_path / "prefixes", RULES[:6000]
    options = (path, "--model-name", "bundled", "--context", 4096, "--prefix-folder", folder)
    with ServerProcess(*options) as one:
        n_before, _, said = by_messages(one, nonce="a1", rules=rules)
        assert one.stop(signal.SIGTERM)[0] == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert files and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    with ServerProcess(*options) as one:
        n_prompt, n_read, _ = by_messages(one, said, result_of(said), nonce="b2", rules=rules)
        assert 0 < n_read <= n_prompt - n_before + FREE < 250
        assert "Look before" not in one.log()


def test_without_a_folder_nothing_is_written(path, tmp_path):
    options = (path, "--model-name", "bundled", "--context", 4096)
    with ServerProcess(*options, environment={"HOME": str(tmp_path)}) as one:
        by_messages(one, nonce="a1", rules=RULES[:2000])
        assert one.stop(signal.SIGTERM)[0] == 0
    assert not list(tmp_path.rglob("*.prefix.gguf"))
