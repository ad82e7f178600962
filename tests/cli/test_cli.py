"""The `bitnet` command: what it writes where, exit codes, ctrl-C, broken pipes, bad files."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from support.paths import DATA, TINY_MODEL

import bitnet
from bitnet.cli import run, terminal
from bitnet.cli.commands import COMMANDS
from bitnet.cli.examples import EXAMPLES
from bitnet.runtime import dispatch
from bitnet.verify import verify

FOLDER = DATA / "hf_bitnet_offline"
GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
PROMPT = "The king came to the city"


# --------------------------------------------------------------------------------------------- run
def line_of(text):
    """Text as a command ends it."""
    return text if text.endswith("\n") else text + "\n"


def test_run_writes_the_text_and_nothing_else(command, model):
    expected = line_of(model.generate(PROMPT, max_tokens=20, temperature=0).text)
    assert command("run", "--raw", PROMPT, "-n", 20, "--temperature", 0) == (0, expected, "")


def test_run_talks_to_a_model_with_a_template(command, model):
    messages = [{"role": "user", "content": PROMPT}]
    expected = line_of(model.chat(messages, max_tokens=20, temperature=0.9, seed=3).text)
    options = ["-n", 20, "--temperature", 0.9, "--seed", 3]
    for form in ([], ["--chat"]):
        assert command("run", *form, *options, PROMPT) == (0, expected, "")


def test_a_chat_template_in_a_file(command, tmp_path):
    text = "{% for m in messages %}Q {{ m.content }}<|eot_id|>\n{% endfor %}A "
    file = tmp_path / "template.jinja"
    file.write_text(text)
    options = ["-n", 8, "--temperature", 0, "--chat-template", file]
    with bitnet.load(chat_template=text) as model:
        done = model.chat([{"role": "user", "content": PROMPT}], max_tokens=8, temperature=0)
    assert command("run", *options, PROMPT) == (0, line_of(done.text), "")
    code, out, _ = command("verify", "--chat-template", file, GGUF, "--json")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert code == 0 and "'Q Which way" in checks["chat template"]["detail"]
    file.write_bytes(b"\xff")
    for words in (["run", PROMPT], ["chat"], ["serve"], ["verify"]):
        code, out, err = command(*words, "--chat-template", file)
        assert (code, out) == (1, "") and f"{file}: text:" in err and "UTF-8" in err
    code, out, err = command("run", "--chat-template", tmp_path / "none", PROMPT)
    assert (code, out) == (1, "") and "No such file" in err
    file.write_text("hello")
    code, out, err = command("run", "--chat-template", file, PROMPT)
    assert (code, out) == (1, "") and "the user's message is not in the prompt" in err


def test_run_with_a_model_file(command):
    with bitnet.load(GGUF) as model:
        expected = line_of(model.generate(PROMPT, max_tokens=8).text)
    for words in (
        [GGUF, PROMPT, "--raw", "-n", 8],
        ["--raw", GGUF, "-n", 8, PROMPT],
        ["-n", 8, "--raw", "--", GGUF, PROMPT],
        [GGUF, "--raw", "-n", 8, "--", PROMPT],
    ):
        assert command("run", *words) == (0, expected, "")


def test_run_reads_a_prompt_that_looks_like_an_option_or_comes_from_a_pipe(command, start, model):
    expected = line_of(model.generate("--x", max_tokens=5, temperature=0).text)
    options = ["--raw", "-n", 5, "--temperature", 0]
    assert command("run", *options, "--", "--x") == (0, expected, "")
    process = start("run", *options, "-")
    assert process.communicate(b"--x\n", timeout=60) == (expected.encode(), b"")
    process = start("run", "-")
    out, err = process.communicate(b"caf\xe9", timeout=60)
    assert (process.returncode, out) == (1, b"")
    assert err == b"bitnet: error: standard input: byte 3 is not UTF-8\n"


def test_run_json(command, model):
    code, out, err = command("run", "--raw", PROMPT, "--json", "-n", 6, "--seed", 9)
    found = json.loads(out)
    expected = dataclasses.asdict(model.generate(PROMPT, max_tokens=6, seed=9))
    assert (code, err, found.keys()) == (0, "", expected.keys())
    assert found["generation_tps"] > 0 and found["prompt_tps"] > 0
    for name in expected.keys() - {"generation_tps", "prompt_tps"}:
        assert found[name] == expected[name]


def test_a_full_context_is_no_end(command):
    options = [TINY_MODEL, "--raw", "--context", 257, "--json", "-n", 400, "--seed", 2, PROMPT]
    code, out, _ = command("run", "--context-end", "window", *options)
    assert (code, json.loads(out)["finish_reason"]) == (0, "length")
    assert json.loads(command("run", *options)[1])["finish_reason"] == "context"


def test_stop_texts_end_the_text(command):
    text = command("run", "--raw", GGUF, PROMPT, "-n", 20)[1]
    first, second = text[6:9], text[3:7]
    assert text.index(second) == 3 and text.index(first) >= 3
    options = ["-n", 20, "--stop", first, "--stop", second]
    assert command("run", "--raw", GGUF, PROMPT, *options) == (0, text[:3] + "\n", "")


# ------------------------------------------------------------------------------------- exit codes
@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["help", "nonsense"],
        ["run"],
        ["run", "--prompt", "a", "--file", "b"],
        ["run", "m", "a", "--prompt", "b"],
        ["run", "--model", "m", "a", "b"],
        ["run", "x", "--logit-bias", "3"],
        ["cache", "clear", "--json"],
        ["completion", "tcsh"],
        ["run", "a", "b", "c"],
        ["run", "x", "--top-p", "3"],
        ["run", "x", "--seed", "-1"],
        ["run", "x", "-n", "0"],
        ["run", "x", "--threads", "0"],
        ["run", "x", "--stop", ""],
        ["run", "x", "--memory-limit", "1.2.3G"],
        ["run", "x", "--chat", "--raw"],
        ["run", "x", "--kv-dtype", "f64"],
        ["run", "x", "--temp", "1"],
        ["run", str(GGUF)],
        ["run", str(FOLDER)],
        ["cache"],
        ["cache", "burn"],
        ["info", "x"],
        ["bench", "--rounds", "no"],
    ],
    ids=lambda argv: " ".join(argv[:4]).replace(str(DATA), ""),
)
def test_wrong_usage(command, argv):
    code, out, err = command(*argv)
    assert (code, out) == (2, "") and "error: " in err.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [["run", "x"], ["chat"], ["inspect"], ["memory"], ["bench"]],
    ids=lambda words: words[0],
)
def test_a_file_that_cannot_be_used(command, tmp_path, words):
    name, *prompt = words
    cut = tmp_path / "cut\n.gguf"
    cut.write_bytes(GGUF.read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    for path, says in (
        (tmp_path / "absent.gguf", "absent.gguf: No such file"),
        (cut, "cut\ufffd.gguf"),
        (tmp_path / "empty", "config.json"),
    ):
        code, out, err = command(name, path, *prompt)
        assert (code, out) == (1, "") and says in err
        assert err.startswith("bitnet: error: ") and err.count("\n") == 1


def test_limits_and_values_that_cannot_be_met(command):
    for words, says in (
        ([PROMPT, "--context", 10**6], "context"),
        ([PROMPT, "--context", 3], "3"),
        (["half a pair: \ud800"], "text"),
    ):
        code, out, err = command("run", "--raw", *words)
        assert (code, out) == (1, "") and says in err and err.count("\n") == 1


def test_help_and_version(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"  {name} " in out
        shown = command(name, "--help")
        assert shown[0] == 0 and "\nexamples:\n  " in shown[1]
        assert command("help", name) == shown
    for words in ([], ["help"], ["-h"]):
        assert command(*words) == (0, out, "")
    assert command("--version")[:2] == (0, f"bitnet {bitnet.__version__}\n")


def test_every_command_has_a_module_a_sentence_and_examples():
    modules = {path.stem for path in Path(run.__file__).parent.glob("*.py")}
    assert set(COMMANDS) == set(EXAMPLES) <= modules
    assert all(text.endswith(".") for text in COMMANDS.values())


# ------------------------------------------------------------------------------ signals and pipes
def test_an_interrupt_keeps_the_text_so_far(command, monkeypatch, model):
    written = []

    def interrupted(text):
        written.append(text)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "write", interrupted)
    monkeypatch.setattr(terminal, "write", interrupted)
    assert command("run", "--raw", PROMPT, "--temperature", 0) == (130, "", "")
    assert model.generate(PROMPT, temperature=0).text.startswith("".join(written[:3]))
    assert written[3:] == ["\n"]


@pytest.mark.parametrize("name", ["foo", "../generic", "generic "])
def test_an_instruction_set_that_cannot_be_had(start, monkeypatch, name):
    monkeypatch.setenv("BITNET_ISA", name)
    said = f"BITNET_ISA: this CPU cannot run {name!r}; it can run "
    for words in (["run", "x"], ["info"], ["verify"], ["bench"], ["serve", "--port", "0"]):
        process = start(*words)
        out, err = (stream.decode() for stream in process.communicate(timeout=60))
        assert (process.returncode, out) == (1, "")
        assert err.startswith(f"bitnet: error: {said}") and err.count("\n") == 1
    process = start("--version")
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0


def test_whoever_computes_is_told_of_the_instruction_set(monkeypatch):
    monkeypatch.setenv("BITNET_ISA", "foo")
    before = dispatch.isa
    try:
        dispatch.choose()  # as at import
        assert dispatch.isa == "generic"
        for use in (bitnet.load, bitnet.info, lambda: verify(GGUF)):
            with pytest.raises(ValueError, match=r"^BITNET_ISA: this CPU cannot run 'foo'"):
                use()
    finally:
        dispatch.use(before)
    assert bitnet.info()["isa"] == before


@pytest.mark.parametrize(("variable", "value"), [
    ("BITNET_CACHE", "~nosuchuser/x"), ("BITNET_MEMORY_LIMIT", "x"), ("BITNET_NUM_THREADS", "x"),
])  # fmt: skip
def test_a_variable_with_a_value_that_is_none(command, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    code, out, err = command("run", FOLDER, "--raw", "x")
    assert (code, out) == (1, "")
    assert err.startswith(f"bitnet: error: {variable}: '{value}'") and err.count("\n") == 1


def test_ctrl_c_between_turns(start):
    process = start("chat", "-n", 3)
    process.stdin.write(b"Who is there?\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=60)[1], process.returncode) == (b"", 130)


def test_ctrl_c_while_kernels_run(start, screen):
    process = start("bench", "--rounds", 10**9, stderr=screen.end)
    screen.wait_for(b"round 2 of")
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=60)[0], process.returncode) == (b"", 130)
    assert b"Traceback" not in screen.all()


def test_a_reader_that_goes_away(start):
    reader, writer = os.pipe()
    os.close(reader)
    process = start("run", PROMPT, stdout=writer)
    os.close(writer)
    assert (process.communicate(timeout=60)[1], process.returncode) == (b"", 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk(start):
    with open("/dev/full", "wb") as full:
        process = start("run", PROMPT, stdout=full)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and err.startswith(b"bitnet: error: ") and err.count(b"\n") == 1


def test_a_person_at_a_terminal_sees_progress_and_timing(start, screen):
    process = start("run", "--raw", PROMPT, "-n", 4, stderr=screen.end)
    assert process.communicate(timeout=60)[0] and process.returncode == 0
    shown = screen.all()
    assert b"loading the bundled model" in shown and b"4 written at" in shown


def test_the_bundled_model_says_that_it_is_a_demonstration(start, screen):
    """After its answer, in a line, to a person: to no pipe, and of no other model."""
    hint = b"[A small demonstration model."
    for words, is_said in ([], True), (["-q"], False), (["--json"], False), ([FOLDER], False):
        process = start("run", *words, "--raw", PROMPT, "-n", 2, stderr=screen.end)
        assert process.wait(60) == 0
        shown, screen.shown = screen.all(), b""
        assert (hint in shown) == is_said, words
        assert not is_said or shown.rstrip().endswith(b" PROMPT]")


def test_a_person_sees_what_a_first_load_writes(start, screen):
    process = start("run", FOLDER, "--raw", PROMPT, "-n", 2, stderr=screen.end)
    assert process.communicate(timeout=60)[0] and process.returncode == 0
    first = screen.all()
    assert b"KiB of repacked weights, once: " in first and b"loading /" in first
    process = start("run", FOLDER, "--raw", PROMPT, "-n", 2, stderr=screen.end)
    assert process.communicate(timeout=60)[0]
    assert b"repacked weights" not in screen.all()[len(first) :]


def test_warnings_of_a_load_stay_on_the_screen(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log = logging.getLogger("bitnet")
    status, before = terminal.Status(), (log.level, list(log.handlers))
    with pytest.raises(OSError), status.loading("m"):
        log.info("writing")
        log.warning("as it \x1b[2J is")
        log.debug("not for people")
        raise OSError
    assert (log.level, log.handlers) == before
    shown = capsys.readouterr().err
    assert shown.startswith("\rloading m\rwriting") and "debug" not in shown
    assert shown.endswith("\ras it \ufffd[2J is\n") and shown.count("\n") == 1


def test_no_model_text_can_drive_a_terminal(monkeypatch, capsys):
    assert terminal.printable("\x1b[2J\x9b1m\r\nb\t\x7f") == "\ufffd[2J\ufffd1m\ufffd\nb\t\ufffd"
    terminal.write("\x1b[2J")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.write("\x1b[2J")
    assert capsys.readouterr().out == "\x1b[2J\ufffd[2J"


# ----------------------------------------------------------------------------------- the others
def test_info(command):
    assert json.loads(command("info", "--json")[1]) == json.loads(json.dumps(bitnet.info()))
    assert f"isa             {bitnet.info()['isa']}\n" in command("info")[1]


def test_cache(command, tmp_path):
    assert command("cache", "list") == (0, "", "")
    empty = {"files": [], "bytes": 0}
    assert json.loads(command("cache", "list", "--json")[1]) == empty
    shutil.copytree(FOLDER, tmp_path / "model")
    with bitnet.load(tmp_path / "model"):
        code, out, _ = command("cache", "list")
    assert code == 0 and str(tmp_path / "cache") in out
    (file,) = (tmp_path / "cache").glob("*.gguf")
    assert out.splitlines()[1:] == [f"{file.stat().st_size:>15,}  bytes of 1 files"]
    found = json.loads(command("cache", "list", "--json")[1])
    assert found["bytes"] == found["files"][0]["bytes"] == file.stat().st_size
    assert found["files"][0]["path"] == str(file)
    code, out, _ = command("cache", "clear")
    assert code == 0 and out != "0 bytes freed\n"
    assert command("cache", "list") == (0, "", "")
    assert command("cache", "clear")[1] == "0 bytes freed\n"
