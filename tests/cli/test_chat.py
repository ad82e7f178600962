"""`bitnet chat`: what the model says, what is remembered and read again, and every option."""

import io
import json
import re
import sys
from math import inf

import pytest
from support.paths import DATA, TINY_MODEL

import bitnet
from bitnet.cli import chat, terminal
from bitnet.cli.chat_commands import Commands
from bitnet.cli.conversation import Conversation
from bitnet.cli.terminal import Said, Status
from bitnet.text.reasoning import ReasoningSplitter


def replies_of(model, lines, system=(), **options):
    """What Model.chat says when everything said before is sent again."""
    messages, said = [*system], []
    for line in lines:
        messages.append({"role": "user", "content": line})
        said.append(model.chat(messages, **options).text)
        messages.append({"role": "assistant", "content": said[-1]})
    return said


def test_chat_says_what_the_model_says_without_reading_twice():
    lines = ["Who art thou?", "And where is the king?", "Why?"]
    options = {"max_tokens": 12, "temperature": 0.8, "seed": 5, "stop": ()}
    with bitnet.load(threads=1) as model:  # nobody else has read anything
        talk = Conversation(model, options)
        said, read = [], []
        for line in lines:
            whole = model.tokenizer.chat([*talk.messages, {"role": "user", "content": line}])
            said.append("".join(talk.reply(line)))
            read.append((len(whole) - talk.completion.cached_tokens) / len(whole))
        assert said == replies_of(model, lines, **options)
        assert read[0] == 1 > max(read[1:])
        talk.reset()
        assert "".join(talk.reply(lines[0])) == said[0]


def test_what_was_said_is_not_read_again_in_the_next_turn():
    with bitnet.load(threads=1) as model:
        talk = Conversation(model, {"max_tokens": 12, "seed": 5})
        for line in ("Who art thou?", "And where is the king?", "Why?"):
            before = talk.completion
            "".join(talk.reply(line))
            c = talk.completion
            if before:  # a reply may be encoded otherwise than it was sampled, what it answers not
                assert 0 < before.prompt_tokens - 2 <= c.cached_tokens
            assert talk.summary().startswith(f"[{c.prompt_tokens - c.cached_tokens} tokens read at")
            assert f" {c.completion_tokens} written at " in talk.summary()
            n_used = c.prompt_tokens + c.completion_tokens - 1
            assert talk.summary().endswith(f" {n_used} of {model.context} in use]")


@pytest.mark.parametrize("name", ["hf_embedding_qwen3", "hf_embedding_gemma3"])
def test_an_embedding_model_does_not_talk(command, monkeypatch, name):
    """Not even until somebody has said something."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = command("chat", DATA / name)
    assert (code, out) == (1, "")
    assert err == f"bitnet: error: {name}: an embedding model (embed works, not generation)\n"


def test_replies_have_one_seed(model):
    talk = Conversation(model, {"max_tokens": 4})
    seeds = []
    for line in ("Who art thou?", "Why?"):
        "".join(talk.reply(line))
        seeds.append(talk.completion.seed)
    assert seeds[0] == seeds[1] != Conversation(model, {}).keywords["seed"]


def test_an_interrupted_reply_is_remembered_as_far_as_it_came(model):
    talk = Conversation(model, {"max_tokens": 12, "stop": (), "seed": 1})
    pieces = talk.reply("Who art thou?")
    first = next(pieces)
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": first}


def test_ctrl_c_stops_a_reply_at_a_terminal(model, monkeypatch, capsys):
    written = []

    def interrupted(text):
        written.append(text)
        if len(written) == 3:
            raise KeyboardInterrupt

    conversation = Conversation(model, {"max_tokens": 12, "seed": 1})
    monkeypatch.setattr(chat, "write", interrupted)
    monkeypatch.setattr(terminal, "write", interrupted)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    said = []

    class Told(Status):
        def say(self, text):
            said.append(text)

    status = Told()
    commands = Commands(conversation, status)
    chat.talk(conversation, ["Who art thou?", "Why?", "/exit"], status, commands)
    partial = "".join(written[:3])
    assert conversation.messages[1] == {"role": "assistant", "content": partial}
    assert [m["content"] for m in conversation.messages[::2]] == ["Who art thou?", "Why?"]
    assert said[0] == "[stopped]" and "tokens read at" in said[1]
    messages = conversation.messages[:3]
    assert "".join(written[4:-1]) == model.chat(messages, max_tokens=12, seed=1).text


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
    assert b"the prompt has " in err and err.count(b"\n") == 1


def test_chat_without_a_template_continues_the_text(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    options = {"max_tokens": 8, "stop": (), "temperature": 0, "seed": 0}
    talk = Conversation(model, options)
    first = "".join(talk.reply("The king"))
    second = "".join(talk.reply("The queen"))
    options.pop("stop")
    assert first == model.generate("The king", **options).text
    assert second == model.generate(f"The king{first}\nThe queen", **options).text


# ------------------------------------------------------------------------------- the command line
LINES = ["Who art thou?", "Why?"]
TEMPLATE = "{% for m in messages %}{{ m.role }}, {{ m.content }}<|eot_id|>\n{% endfor %}: "
NO_THINKING = TEMPLATE + "{% if enable_thinking is false %}Nay{% endif %}"
THINKING = TEMPLATE + "<think>\n"
USUAL = {"max_tokens": 8, "seed": 5}
# option of `bitnet chat` -> its values, what bitnet.load is given, what Model.chat_stream is given
CASES = {
    "--threads": (["2"], {"threads": 2}, {}),
    "--context": (["300"], {"context": 300}, {}),
    "--kv-dtype": (["int8"], {"kv_dtype": "int8"}, {}),
    "--mapping": (["copy"], {"mapping": "copy"}, {}),
    "--layout": (["4row"], {"layout": "4row"}, {}),
    "--memory-limit": (["1GiB"], {"memory_limit": 1 << 30}, {}),
    "--max-tokens": (["3"], {}, {"max_tokens": 3}),
    "--temperature": (["0"], {}, {"temperature": 0.0}),
    "--top-k": (["1"], {}, {"top_k": 1}),
    "--top-p": (["0.05"], {}, {"top_p": 0.05}),
    "--min-p": (["0.9"], {}, {"min_p": 0.9}),
    "--repetition-penalty": (["3"], {}, {"repetition_penalty": 3.0}),
    "--presence-penalty": (["-2"], {}, {"presence_penalty": -2.0}),
    "--frequency-penalty": (["-2"], {}, {"frequency_penalty": -2.0}),
    "--logit-bias": (["39=-inf", "--logit-bias", "14=5"], {}, {"logit_bias": {39: -inf, 14: 5.0}}),
    "--context-end": (["stop"], {}, {"context_end": "stop"}),
    "--seed": (["9"], {}, {"seed": 9}),
    "--speculative": ([str(TINY_MODEL)], {"speculative": str(TINY_MODEL)}, {}),
    "--stop": ([" ", "--stop", ","], {}, {"stop": (" ", ",")}),
    "--system": (["Thou art the king."], {}, {}),
    "--no-thinking": (
        ["--chat-template", NO_THINKING],
        {"chat_template": NO_THINKING},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ),
    "--reasoning-format": (
        ["none", "--chat-template", THINKING],
        {"chat_template": THINKING},
        {},
    ),
    "--chat-template": ([TEMPLATE], {"chat_template": TEMPLATE}, {}),
}


def test_every_option_has_a_case(command):
    shown = command("chat", "--help")[1]
    found = set(re.findall(r"^  (?:-\w(?: [A-Z]+)?, )?(--[\w-]+)", shown, re.M))
    elsewhere = {"--activations", "--help", "--model", "--quiet", "--verbose"}
    assert found == {*CASES, *elsewhere}


def test_activations_are_for_scales_of_groups(command):
    path = DATA / "groups" / "gguf_pq2_0" / "Tiny-PQ2_0.gguf"
    options = ("--raw", "-n", 8, "--seed", 5, "--activations")
    for activations in ("int16", "int8"):
        with bitnet.load(path, activations=activations) as model:
            expected = model.generate("The king", max_tokens=8, seed=5).text
        code, out, _ = command("run", *options, activations, path, "The king")
        assert (code, out) == (0, f"{expected}\n")
    code, _, err = command("run", *options, "int8", "The king")
    assert code == 1 and "activations: 'int8' (None: this model has one scale a row" in err


@pytest.fixture(scope="module")
def tiny():
    """A model whose replies differ with every option."""
    with bitnet.load(TINY_MODEL, threads=1) as model:
        yield model


@pytest.mark.parametrize("option", CASES)
def test_an_option_does_what_it_does_in_python(command, monkeypatch, tiny, option, tmp_path):
    values, load, generation = CASES[option]
    if "chat_template" in load:
        path = tmp_path / "template.jinja"
        path.write_text(load["chat_template"])
        values = [path if value == load["chat_template"] else value for value in values]
    with bitnet.load(TINY_MODEL, **{"threads": 1} | load) as other:
        system = [{"role": "system", "content": text} for text in values if option == "--system"]
        expected = replies_of(other, LINES, system, **USUAL | generation)
    loads, plain_load = [], bitnet.load
    monkeypatch.setattr(
        bitnet, "load", lambda path, **given: loads.append(given) or plain_load(path, **given)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in LINES)))
    code, out, err = command("chat", "-m", TINY_MODEL, "-n", 8, "--seed", 5, option, *values)
    assert (code, out, err) == (0, "".join(f"{text}\n" for text in expected), "")
    assert load.items() <= loads[0].items()
    if option != "--context-end" and (generation or system or "chat_template" in load):
        assert expected != replies_of(tiny, LINES, **USUAL)


def test_a_system_message_needs_a_template(command, monkeypatch):
    monkeypatch.setattr("bitnet.text.tokenizer.ChatTemplate", lambda *_: None)
    code, out, err = command("chat", "--system", "x")
    assert (code, out) == (1, "") and "--system: the model has no chat template" in err


@pytest.fixture
def thinking(tmp_path):
    """A template after which a reply begins with what the model thinks."""
    path = tmp_path / "thinking.jinja"
    path.write_text(THINKING)
    return path


def test_what_is_thought_is_for_a_person_alone(command, start, screen, thinking):
    options = ("-m", TINY_MODEL, "--chat-template", thinking, "-n", 8, "--temperature", 0)
    code, whole, err = command("run", *options, "--reasoning-format", "none", "Why?")
    assert (code, err) == (0, "") and whole.strip()
    assert command("run", *options, "Why?") == (0, "", "")  # it never says </think>
    code, out, _ = command("run", *options, "--json", "Why?")
    found = json.loads(out)
    assert (found["text"], found["reasoning_content"]) == ("", whole.strip())
    process = start("run", *options, "Why?", stderr=screen.end)
    assert process.communicate(timeout=60)[0] == b""
    assert whole.split()[0].encode() in screen.all()


def test_reasoning_and_answer_of_a_reply(capsys):
    class Terminal(Status):
        def __init__(self):
            super().__init__()
            self.on = True

    for on in (False, True):
        with Said(Terminal() if on else Status()) as said:
            said.splitter = ReasoningSplitter()
            for character in "<think>\nLet me\x1b[2J see.\n</think>\n\nAye, my lord.":
                said.push(character)
        out, err = capsys.readouterr()
        assert out == "Aye, my lord." == said.text
        assert said.reasoning == "Let me\x1b[2J see."
        shown = err.replace("\x1b[90m", "").replace("\x1b[39m", "")
        assert shown == ("Let me\N{REPLACEMENT CHARACTER}[2J see.\n\n" if on else "")


def test_a_template_decides_what_earlier_reasoning_is_read_again(model, monkeypatch):
    talk = Conversation(model, {"max_tokens": 8}, new_splitter=lambda ids: ReasoningSplitter())
    said = "".join(talk.reply("Why?"))
    assert talk.messages[-1] == {"role": "assistant", "content": said}  # all of it


@pytest.mark.parametrize("verb", ["run", "chat"])
def test_no_thinking_needs_a_template_that_reads_it(command, monkeypatch, verb):
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\n"))
    code, out, err = command(verb, "--no-thinking", *["Why?"] * (verb == "run"))
    assert (code, out) == (1, "")
    assert "--no-thinking: the chat template does not read enable_thinking" in err


def test_no_thinking_of_a_text(command):
    code, out, err = command("run", "--raw", "--no-thinking", "Why?")
    assert (code, out) == (1, "") and "--no-thinking: the prompt is no message" in err
