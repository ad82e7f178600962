"""Where a prompt and a model may stand, what messages call them, help, completion, -q and -v."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from support.paths import DATA, TINY_MODEL

import bitnet
from bitnet.cli import commands, terminal
from bitnet.cli.command import command as parts_of
from bitnet.cli.completion import SHELLS
from bitnet.cli.examples import EXAMPLES
from bitnet.cli.parser import Parser

GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
PROMPT = "The king came"
GREEDY = ["-n", 6, "--temperature", 0]


def text_of(*prompt, **options):
    with bitnet.load(threads=1) as model:
        options = {"max_tokens": 6, "temperature": 0} | options
        text = model.generate(*prompt, **options).text
    return text if text.endswith("\n") else text + "\n"


def test_a_prompt_comes_from_every_place(command, start, tmp_path):
    expected, file = text_of(PROMPT), tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    for words in (["-p", PROMPT], ["--prompt", PROMPT], ["-f", file], ["--file", file], [PROMPT]):
        assert command("run", "--raw", *GREEDY, *words) == (0, expected, "")
    for words in ([], ["-"], ["-f", "-"]):
        process = start("run", "--raw", *GREEDY, *words)
        assert process.communicate(PROMPT.encode() + b"\n", timeout=60) == (expected.encode(), b"")
    with open(file) as stdin:
        process = start("run", "--raw", *GREEDY, stdin=stdin)
        assert process.communicate(timeout=60)[0] == expected.encode()


def test_a_model_comes_as_a_word_or_an_option(command, start):
    with bitnet.load(GGUF) as model:
        expected = model.generate(PROMPT, max_tokens=6, temperature=0).text + "\n"
    for words in (
        ["-m", GGUF, PROMPT], [PROMPT, "--model", GGUF], [GGUF, "-p", PROMPT],
        ["-m", GGUF, "-p", PROMPT], [GGUF, PROMPT],
    ):  # fmt: skip
        assert command("run", "--raw", *GREEDY, *words) == (0, expected, "")
    for words in ([GGUF], ["-m", GGUF], ["-m", GGUF, "-"]):
        process = start("run", "--raw", *GREEDY, *words)
        assert process.communicate(PROMPT.encode(), timeout=60) == (expected.encode(), b"")
    shown = command("inspect", GGUF, "--json")
    assert command("inspect", "-m", GGUF, "--json") == shown and shown[0] == 0
    assert "1 arguments" not in command("inspect", "-m", GGUF, GGUF)[1]


def test_a_system_message_of_run(command):
    with bitnet.load(TINY_MODEL, threads=1) as model:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
        expected = model.chat(messages, max_tokens=6, temperature=0).text
        assert expected != model.chat(messages[1:], max_tokens=6, temperature=0).text
    words = ("-m", TINY_MODEL, "--system", "Be brief.", PROMPT)
    assert command("run", *words, *GREEDY)[1] == expected + "\n"
    code, _, err = command("run", "--raw", "--system", "Be brief.", PROMPT)
    assert code == 1 and "--system: the prompt is no message" in err


def test_what_makes_tokens_less_likely(command):
    plain = text_of(PROMPT, max_tokens=30)
    for words, options in (
        (["--presence-penalty", 2], {"presence_penalty": 2.0}),
        (["--frequency-penalty", 2], {"frequency_penalty": 2.0}),
        (["--logit-bias", "13=-inf"], {"logit_bias": {13: float("-inf")}}),
    ):
        expected = text_of(PROMPT, max_tokens=30, **options)
        words = [*words, "-n", 30, "--temperature", 0, "--raw", PROMPT]
        assert command("run", *words) == (0, expected, "")
        assert expected != plain or "bias" in str(words)


def test_a_missing_prompt_is_asked_for(command):
    for words, says in (([], "the prompt is missing"), ([GGUF], f"{GGUF} is a model: the prompt")):
        code, out, err = command("run", *words)
        assert (code, out) == (2, "") and says in err


# ----------------------------------------------------------------------------------- messages
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rnu"], "'rnu' is no command; did you mean run?"),
        (["xyzzy"], "'xyzzy' is no command (`bitnet help`)"),
        (["run", "x", "--temp", "1"], "--temp: no such option; did you mean --temperature?"),
        (["run", "x", "--max-token=3"], "--max-token: no such option; did you mean --max-tokens?"),
        (["run", "x", "-n", "0"], "--max-tokens: 0 (a whole number of at least 1)"),
        (["run", "x", "--top-k", "-1"], "--top-k: -1 (a whole number from 0 to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words_are_named_as_they_were_written(command, words, says):
    code, out, err = command(*words)
    assert (code, out) == (2, "") and says in err


def test_errors_of_the_engine_name_options(command):
    code, _, err = command("run", "--context", 10**7, "x")
    assert code == 1 and err.startswith("bitnet: error: --context: 10000000 (")
    code, _, err = command("run", "--memory-limit", "1M", "x", "--context", 512)
    assert code == 1 and err.startswith("bitnet: error: --memory-limit: 1048576 bytes (")
    assert "context=" not in err and "kv_dtype" not in err
    code, _, err = command("run", "--raw", "--context", 10, "a b c d e f g h i j k")
    assert re.search(r"^bitnet: error: the prompt has \d\d tokens, the context 10$", err, re.M)


def test_keywords_become_options_where_there_are_such():
    parser = Parser()
    parser.add_argument("-n", "--max-tokens")
    parser.add_argument("--kv-dtype")
    said = "max_tokens: 0 (a; slots=3 and kv_dtype='int8')"
    assert parser.in_options(said) == "--max-tokens: 0 (a; slots=3 and --kv-dtype int8)"
    assert parser.in_options("model.gguf: kv: 3") == "model.gguf: kv: 3"


def test_a_prompt_much_too_long_is_not_counted(command, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("a b c " * 50_000)
    code, _, err = command("run", "--raw", "--context", 64, "-f", file)
    assert (code, err) == (1, "bitnet: error: the prompt has more tokens than the context, 64\n")


# ------------------------------------------------------------------------------ help, completion
@pytest.mark.parametrize("words", [[], ["help"], ["--help"]])
def test_help_without_a_command(command, words):
    code, out, err = command(*words)
    assert (code, err) == (0, "") and all(f"\n  {name} " in out for name in commands.COMMANDS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_read_as_they_stand(name):
    for line in EXAMPLES[name].strip().splitlines():
        line = line.rpartition(" | ")[2].partition(" > ")[0].partition(" < ")[0]
        program, verb, *words = shlex.split(line)
        assert (program, verb) == ("bitnet", name)
        module, parser = parts_of(name)
        parser.read(words, module.N_ARGS)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_options_and_values(command, shell):
    code, script, err = command("completion", shell)
    assert (code, err) == (0, "")
    for word in (*commands.COMMANDS, "context-end", "window", "clear"):
        assert re.search(rf"(?<![\w-])(--)?{word}(?![\w-])", script), word
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("pul", "pull"), ("run --context-e", "--context-end"), ("run --context-end w", "window"),
     ("help ben", "bench"), ("cache cl", "clear")],
)  # fmt: skip
def test_bash_completes(command, typed, offered):
    script = command("completion", "bash")[1]
    words = ["bitnet", *typed.split(" ")]
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _bitnet; "
    shown = subprocess.run(
        ["bash", "-c", script + ask + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True
    )
    assert (shown.stdout, shown.stderr) == (f"{offered}\n", "")


# ------------------------------------------------------------------------------------- -q and -v
def test_quiet_and_verbose(command, start, screen, monkeypatch):
    process = start("run", "-q", "--raw", "-n", 2, PROMPT, stderr=screen.end)
    assert process.communicate(timeout=60)[0] and screen.all() == b""
    log = logging.getLogger("bitnet")
    before = log.level, log.propagate, list(log.handlers)
    code, out, err = command("run", "-v", DATA / "hf_bitnet_offline", "--raw", "-n", 2, PROMPT)
    assert code == 0 and "bitnet: " in err and "repacked weights" in err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with terminal.verbosity(quiet=True, verbose=False):
        assert not terminal.Status().on and not log.isEnabledFor(logging.WARNING)
    assert terminal.Status().on and (log.level, log.propagate, log.handlers) == before
    code, out, _ = command("info", "-q", "--json")
    assert code == 0 and json.loads(out)["isa"]


def test_a_person_sees_how_far_embeddings_are(start, screen):
    words = [DATA / "hf_embedding_qwen3", "--slots", 2, "a", "b", "c"]
    process = start("embed", *words, stderr=screen.end)
    assert process.communicate(timeout=60)[0].count(b"\n") == 3
    assert b"\r2 texts\r3 texts\r" in screen.all()
