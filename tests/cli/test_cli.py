"""The `bitnet` command: what it writes where, exit codes, ctrl-C, broken pipes, bad files."""

import contextlib
import dataclasses
import json
import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
from support.paths import DATA

import bitnet
from bitnet.cli import chat, main, run, terminal

FOLDER = DATA / "hf_bitnet_offline"
GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
PROMPT = "The king came to the city"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")


@pytest.fixture
def command(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*argv):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as leaving:  # argparse: usage, --help, --version
            code = leaving.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def start(tmp_path):
    """Start a command in a process of its own."""
    with contextlib.ExitStack() as stack:

        def spawn(*argv, **keywords):
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | keywords
            process = subprocess.Popen(
                [sys.executable, "-m", "bitnet", *map(str, argv)], cwd=tmp_path, **pipes
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield spawn


class Screen:
    """What a person would see: a terminal whose end is given to a process."""

    def __init__(self):
        self.ours, self.end = pty.openpty()
        self.shown = b""

    def wait_for(self, text):
        while text not in self.shown:
            self.shown += os.read(self.ours, 4096)

    def all(self):
        """Everything shown, once the process has ended."""
        os.set_blocking(self.ours, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.shown += os.read(self.ours, 4096)
        return self.shown


@pytest.fixture
def screen():
    screen = Screen()
    yield screen
    os.close(screen.ours)
    os.close(screen.end)


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1) as model:
        yield model


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
    options = ["--raw", "--context", 257, "--json", "-n", 400, "--seed", 2, PROMPT]
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
        [],
        ["nonsense"],
        ["run"],
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
    for path, says in (
        (tmp_path / "absent.gguf", "absent.gguf: No such file"),
        (cut, "cut\ufffd.gguf"),
        (tmp_path, "config.json"),
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
    for name in ("run", "chat", "inspect", "memory", "info", "bench", "cache"):
        assert f"  {name} " in out
        assert command(name, "--help")[0] == 0
    assert command("--version")[:2] == (0, f"bitnet {bitnet.__version__}\n")


# ------------------------------------------------------------------------------ signals and pipes
def test_an_interrupt_keeps_the_text_so_far(command, monkeypatch, model):
    written = []

    def interrupted(text):
        written.append(text)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "write", interrupted)
    assert command("run", "--raw", PROMPT, "--temperature", 0) == (130, "", "")
    assert model.generate(PROMPT, temperature=0).text.startswith("".join(written[:3]))
    assert written[3:] == ["\n"]


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


def test_no_model_text_can_drive_a_terminal(monkeypatch, capsys):
    assert terminal.printable("\x1b[2J\x9b1m\r\nb\t\x7f") == "\ufffd[2J\ufffd1m\ufffd\nb\t\ufffd"
    terminal.write("\x1b[2J")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.write("\x1b[2J")
    assert capsys.readouterr().out == "\x1b[2J\ufffd[2J"


# ------------------------------------------------------------------------------------------- chat
def replies_of(model, lines, **options):
    """What Model.chat says when everything said before is sent again."""
    messages, said = [], []
    for line in lines:
        messages.append({"role": "user", "content": line})
        said.append(model.chat(messages, **options).text)
        messages.append({"role": "assistant", "content": said[-1]})
    return said


def test_chat_says_what_the_model_says_without_reading_twice(model):
    lines = ["Who art thou?", "And where is the king?", "Why?"]
    options = {"max_tokens": 12, "temperature": 0.8, "seed": 5, "stop": ()}
    with model.session() as session:
        talk = chat.Conversation(model, session, options)
        said, read = [], []
        for line in lines:
            whole = model.tokenizer.chat([*talk.messages, {"role": "user", "content": line}])
            said.append("".join(talk.reply(line)))
            read.append(talk.n_read / len(whole))
        assert said == replies_of(model, lines, **options)
        assert read[0] == 1 > max(read[1:])
        talk.reset()
        assert "".join(talk.reply(lines[0])) == said[0]


def test_an_interrupted_reply_is_remembered_as_far_as_it_came(model):
    with model.session() as session:
        talk = chat.Conversation(model, session, {"max_tokens": 12, "stop": (), "seed": 1})
        pieces = talk.reply("Who art thou?")
        first = next(pieces)
        pieces.close()
        assert talk.messages[-1] == {"role": "assistant", "content": first}


def test_chat_reads_lines_and_commands(start, model):
    said = replies_of(model, ["Who art thou?", "Why?"], max_tokens=9, temperature=0)
    first = replies_of(model, ["Why?"], max_tokens=9, temperature=0)
    process = start("chat", "-n", 9, "--temperature", 0)
    typed = b"Who art thou?\n\nWhy?\n/reset\nWhy?\n/exit\nWhy?\n"
    out, err = process.communicate(typed, timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.decode() == "".join(f"{text}\n" for text in said + first)


def test_chat_goes_on_after_a_line_that_is_too_long(start, model):
    process = start("chat", "-n", 5, "--temperature", 0)
    out, err = process.communicate(b"a b c " * 5000 + b"\nWhy?\n", timeout=60)
    (expected,) = replies_of(model, ["Why?"], max_tokens=5, temperature=0)
    assert (process.returncode, out.decode()) == (0, expected + "\n")
    assert b"capacity is" in err and err.count(b"\n") == 1


def test_chat_without_a_template_continues_the_text(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    options = {"max_tokens": 8, "stop": (), "temperature": 0, "seed": 0}
    with model.session() as session:
        talk = chat.Conversation(model, session, options)
        first = "".join(talk.reply("The king"))
        second = "".join(talk.reply("The queen"))
    options.pop("stop")
    assert first == model.generate("The king", **options).text
    assert second == model.generate(f"The king{first}\nThe queen", **options).text


# ----------------------------------------------------------------------------------- the others
def test_info(command):
    assert json.loads(command("info", "--json")[1]) == json.loads(json.dumps(bitnet.info()))
    assert f"isa             {bitnet.info()['isa']}\n" in command("info")[1]


@pytest.mark.parametrize("path", [GGUF, FOLDER], ids=["mapped", "repacked"])
def test_bench(command, monkeypatch, path):
    monkeypatch.setenv("BITNET_CACHE", "off")
    sizes = ["--prompt-tokens", 5, "-n", 3, "--rounds", 2]
    found = json.loads(command("bench", path, "--json", *sizes)[1])
    inspected = json.loads(command("inspect", path, "--json")[1])["tensors"]
    n_weights = sum(t["weights"] for t in inspected if t["ternary"])
    (head,) = [t["bytes"] for t in inspected if "embd" in t["name"] or "embed" in t["name"]]
    assert found["bytes_per_token"] == n_weights // 4 + head
    assert found["share"] == pytest.approx(found["decode_tps"] / found["bound_tps"])
    assert found["prefill_tps"] > 0 and found["rounds"] == 2
    code, out, _ = command("bench", path, *sizes)
    assert code == 0 and "tokens/s" in out and "GB/s" in out


def test_bench_needs_room_for_its_tokens(command):
    code, _, err = command("bench", GGUF, "--context", 8, "--prompt-tokens", 8, "-n", 1)
    assert code == 1 and "9" in err


def test_cache(command, tmp_path):
    assert command("cache", "list") == (0, "", "")
    shutil.copytree(FOLDER, tmp_path / "model")
    with bitnet.load(tmp_path / "model"):
        code, out, _ = command("cache", "list")
    assert code == 0 and out.count("\n") == 1 and str(tmp_path / "cache") in out
    code, out, _ = command("cache", "clear")
    assert code == 0 and out != "0 bytes freed\n"
    assert command("cache", "list") == (0, "", "")
    assert command("cache", "clear")[1] == "0 bytes freed\n"
