"""`bitnet chat` with its commands: going back, saving, a full context, editing, Markdown."""

import io
import json
import os
import termios

import pytest

import bitnet
from bitnet.cli import chat
from bitnet.cli.chat_commands import COMMANDS, Commands
from bitnet.cli.conversation import Conversation
from bitnet.cli.markdown import MarkdownWriter, split_blocks
from bitnet.cli.terminal import Status
from bitnet.errors import FormatError

OPTIONS = {"max_tokens": 8, "seed": 5, "context_end": "window"}


@pytest.fixture
def talk(model):
    return Conversation(model, dict(OPTIONS))


def say(talk, *lines):
    """What is shown on stdout and stderr is left to capsys."""
    status = Status()
    chat.talk(talk, lines, status, Commands(talk, status))


def contents(talk, role):
    return [m["content"] for m in talk.messages if m["role"] == role]


def test_unknown_commands_are_not_sent_to_the_model(talk, capsys):
    say(talk, "/ststs", "/nothing at all", "/")
    out, err = capsys.readouterr()
    assert (talk.messages, out) == ([], "")
    assert "/ststs is no command; did you mean /stats?" in err and "/nothing is no command" in err
    say(talk, "//usr is a folder")
    assert contents(talk, "user") == ["/usr is a folder"]


def test_help_names_every_command_and_each_can_be_called(talk, capsys):
    say(talk, "/help")
    shown = capsys.readouterr().err
    assert all(f"{name} " in shown for name in COMMANDS)
    commands = Commands(talk, Status())
    assert {name[1:] for name in COMMANDS} == {
        name for name in vars(Commands) if not name.startswith("_") and name != "run"
    }
    for name in COMMANDS:
        assert commands.run(name) is None
    assert commands.left and talk.messages == []


def test_regen_undo_and_edit_go_back_to_the_latest_line(talk, model):
    say(talk, "Who art thou?", "Why?")
    first = list(talk.messages)
    say(talk, "/regen")
    assert talk.messages[:3] == first[:3] and talk.completion.seed == OPTIONS["seed"] + 1
    again = model.chat(first[:3], **OPTIONS | {"seed": 6}).text
    assert talk.messages[3]["content"] == again
    say(talk, "/edit When?")
    assert contents(talk, "user") == ["Who art thou?", "When?"]
    say(talk, "/undo")
    assert talk.messages == first[:2]
    commands = Commands(talk, Status())
    assert commands.run("/edit") is None and commands.draft == "Who art thou?"
    assert talk.messages == []


def test_settings_and_the_system_message(talk, capsys):
    say(talk, "/set temperature 0", "/set max-tokens 3", "/system Be brief.", "Why?")
    assert talk.keywords["temperature"] == 0 and talk.completion.completion_tokens <= 3
    assert talk.messages[0] == {"role": "system", "content": "Be brief."}
    say(talk, "/set temperature -1", "/set nothing 1", "/set top_k x", "/set")
    err = capsys.readouterr().err
    for text in ("temperature: -1.0 (", "nothing: nothing to set", "top_k: 'x' (a number)"):
        assert text in err
    assert "temperature 0.0" in err and "max_tokens 3" in err and "top_p the model" in err
    say(talk, "/system")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]


def test_figures(talk, capsys, model):
    say(talk, "Why?", "/stats", "/context", "/memory")
    err = capsys.readouterr().err
    assert talk.summary() in err and str(model.context) in err and "kv" in err
    assert f"[{talk.n_tokens()} of {model.context} tokens in use]" in err


def test_a_saved_conversation_goes_on_without_being_read_again(tmp_path, capsys):
    path = tmp_path / "talk.json"
    with bitnet.load(threads=1) as model:
        talk = Conversation(model, dict(OPTIONS))
        say(talk, "Who art thou?", "And where is the king?", f"/save {path}", "Why?")
        expected = talk.messages
    assert {os.stat(file).st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    with bitnet.load(threads=1) as model:
        talk = Conversation(model, dict(OPTIONS))
        say(talk, f"/load {path}")
        assert talk.messages == expected[:4]
        say(talk, "Why?")
        assert talk.messages == expected
        assert talk.completion.cached_tokens > talk.completion.prompt_tokens // 2
    with bitnet.load(threads=1, kv_dtype="int8") as model:  # its keys and values are others
        talk = Conversation(model, dict(OPTIONS))
        assert talk.load(path) == 0 and talk.messages == expected[:4]
        say(talk, "Why?")
        assert talk.completion.cached_tokens == 0
    assert "tokens need not be read again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "x",
        '{"form": "bitnet chat 1", "system": 0, "messages": []}',
        '{"form": "bitnet chat 1", "messages": [{"role": 1, "content": ""}]}',
    ],
)
def test_a_file_of_another_form_changes_nothing(talk, tmp_path, text, capsys):
    say(talk, "Why?")
    before = list(talk.messages)
    (tmp_path / "x.json").write_text(text)
    say(talk, f"/load {tmp_path / 'x.json'}", "/load", "/load /nonexistent/x")
    err = capsys.readouterr().err
    assert talk.messages == before and "bitnet: /load: " in err and "FILE is missing" in err
    with pytest.raises((FormatError, ValueError)):
        talk.load(tmp_path / "x.json")


def test_export_writes_a_document(talk, tmp_path):
    say(talk, "/system Be brief.", "Why?", f"/export {tmp_path / 'a.md'}")
    text = (tmp_path / "a.md").read_text()
    assert text.startswith("## System\n\nBe brief.\n\n## You\n\nWhy?\n\n## Model\n\n")


def test_a_full_context_never_ends_a_conversation(capsys, monkeypatch):
    said = []
    monkeypatch.setattr(Status, "say", lambda self, text: said.append(text))
    with bitnet.load(threads=1, context=257) as model:
        talk = Conversation(model, OPTIONS | {"max_tokens": 60, "stop": ()})
        for _ in range(12):
            say_to = len(talk.messages)
            status = Status()
            chat.talk(talk, ["Who art thou, and where is the king? " * 2], status,
                      Commands(talk, status))  # fmt: skip
            assert len(talk.messages) == say_to + 2 and talk.completion is not None
        assert talk.n_dropped > 0
        said.clear()
        status = Status()
        chat.talk(talk, ["Why?", "Why?"], status, Commands(talk, status))
        assert sum("is full" in text for text in said) == 1
        n, dropped = len(talk.messages), talk.n_dropped
        say(talk, "a b c " * 2000)
        assert talk.n_dropped == dropped  # a line that is refused forgets nothing
        assert "the prompt has " in capsys.readouterr().err and len(talk.messages) == n
        say(talk, "Why?")
        assert len(talk.messages) == n + 2


def test_window_is_the_default_where_the_context_can_move(command, monkeypatch):
    for context, expected in ((257, "window"), (200, "stop")):
        given = []
        plain = bitnet.Model.request
        monkeypatch.setattr(
            bitnet.Model, "request",
            lambda self, ids, plain=plain, given=given, **k:
                given.append(k) or plain(self, ids, **k),
        )  # fmt: skip
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        assert command("chat", "--context", context)[0] == 0
        assert given[0]["context_end"] == expected
        monkeypatch.undo()


# ---------------------------------------------------------------------------------- at a terminal
def test_blocks_of_markdown_are_whole():
    assert split_blocks("a\n\nb") == ("a\n\n", "b")
    assert split_blocks("```\na\n\nb\n") == ("", "```\na\n\nb\n")
    assert split_blocks("```\na\n\nb\n```\n\nc") == ("```\na\n\nb\n```\n\n", "c")
    assert split_blocks("a") == ("", "a")


def test_markdown_is_drawn_and_cannot_drive_the_terminal():
    console = pytest.importorskip("rich.console")
    from rich.live import Live
    from rich.markdown import Markdown

    screen = io.StringIO()
    writer = MarkdownWriter(console.Console(file=screen, width=40), Live, Markdown)
    for character in "# Kings\n\n- **one**\n- two\n\nEnd \x1b[2J.":
        writer(character)
    writer.close()
    shown = screen.getvalue()
    assert "Kings" in shown and "• one" in shown and "**" not in shown and "\x1b[2J" not in shown


ASKED = b"\x1b[0m>\x1b[0m"  # the prompt, as prompt_toolkit draws it


def at_terminal(start, screen, tmp_path, monkeypatch, *words):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")  # nobody answers where the cursor is
    termios.tcsetwinsize(screen.end, (24, 80))
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), screen.end)
    return start("chat", "-n", 6, "--temperature", 0, *words, **ends)


def test_a_paste_is_one_message_and_history_is_kept(start, screen, tmp_path, monkeypatch):
    pytest.importorskip("prompt_toolkit")
    saved = tmp_path / "talk.json"
    process = at_terminal(start, screen, tmp_path, monkeypatch)
    screen.wait_for(ASKED)
    screen.shown = b""
    os.write(screen.ours, b"\x1b[200~first line\nsecond line\nthird\x1b[201~\r")
    screen.wait_for(b"written at")
    screen.shown = screen.shown.partition(b"written at")[2]
    screen.wait_for(ASKED)
    screen.shown = b""
    os.write(screen.ours, f"/save {saved}\r".encode())
    screen.wait_for(b"[saved, with")
    screen.shown = screen.shown.partition(b"[saved, with")[2]
    screen.wait_for(ASKED)
    os.write(screen.ours, b"\x04")
    assert process.wait(60) == 0
    messages = json.loads(saved.read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == [
        "first line\nsecond line\nthird"
    ]
    history = tmp_path / "state" / "bitnet" / "chat_history"
    assert "+second line" in history.read_text() and history.stat().st_mode & 0o077 == 0


def test_what_is_typed_during_a_reply_waits_for_the_prompt(start, screen, tmp_path, monkeypatch):
    pytest.importorskip("prompt_toolkit")
    saved = tmp_path / "talk.json"
    process = at_terminal(start, screen, tmp_path, monkeypatch)
    screen.wait_for(ASKED)
    os.write(screen.ours, b"one\r")
    screen.wait_for(b"reading")  # no prompt now: a terminal would make a line feed of Enter
    screen.shown = screen.shown.partition(b"reading")[2]
    os.write(screen.ours, b"two\r\x1b[200~three\nfour\x1b[201~\r")
    os.write(screen.ours, f"/save {saved}\r/exit\r".encode())
    screen.wait_for(b"[saved, with")
    assert process.wait(60) == 0
    messages = json.loads(saved.read_text())["messages"]
    said = [m["content"] for m in messages if m["role"] == "user"]
    assert said == ["one", "two", "three\nfour"]
    assert b"two" not in screen.shown.partition(b"written at")[0]  # in the middle of the reply
    assert termios.tcgetattr(screen.end)[3] & termios.ECHO


def test_ctrl_c_twice_at_the_prompt_leaves(start, screen, tmp_path, monkeypatch):
    pytest.importorskip("prompt_toolkit")
    process = at_terminal(start, screen, tmp_path, monkeypatch)
    screen.wait_for(ASKED)
    os.write(screen.ours, b"\x03")
    screen.wait_for(b"ctrl-C again leaves")
    screen.shown = screen.shown.partition(b"again leaves")[2]
    screen.wait_for(ASKED)
    os.write(screen.ours, b"\x03")
    assert process.wait(60) == 0
