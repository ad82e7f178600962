"""The forms in which models write calls: which one a template knows, reading it in any pieces."""

import json
import random

import pytest
from support.tool_templates import QWEN3_TEMPLATE, TEMPLATES

from bitnet.text.chat_template import ChatTemplate
from bitnet.text.special_tokens import SpecialTokens
from bitnet.text.tool_calls import CallReader
from bitnet.text.tool_forms import FALCON, LLAMA3, OURS, QWEN3, QWEN35, call_of

TOOL = {"type": "function", "function": {"name": "f", "description": "It <|im_end|> does.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}  # fmt: skip
FORMS = [OURS, QWEN3, FALCON, LLAMA3, QWEN35]


@pytest.mark.parametrize("form", TEMPLATES, ids=lambda form: form.name)
def test_a_template_shows_its_form(form):
    assert ChatTemplate(TEMPLATES[form]).tool_form is form


@pytest.mark.parametrize("source", [
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}",  # calls are not written
    "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}{# tools #}",
    "{% if tools %}{{ raise_exception('no tools') }}{% endif %}",
    QWEN3_TEMPLATE.replace("tool_call>", "other>"),
    QWEN3_TEMPLATE.replace("{{ m.content }}\n</tool_response>", ""),
])  # fmt: skip
def test_a_template_that_knows_no_form_gets_ours(source):
    assert ChatTemplate(source).tool_form is OURS


ARGUMENTS = [
    {"a": '}</tool_call>"{\\'},
    {},
    {"b": {"c": [{}, "\\\\", "\u20ac<tool_call>"]}, "d": 1.5},
    {"d": "{", "e": None},
    {"f": "several\nlines\n\n  of <parameter=x> text", "g": "5", "h": ""},
]
TEXTS = {"f": frozenset(["f", "g", "h", "a"])}  # of QWEN35


def written(form, calls, texts=TEXTS):
    """A reply with these calls, as a model of the form writes it."""
    parts = []
    for arguments in calls:
        if form.key is not None:
            parts.append(form.head("f") + json.dumps(arguments) + "}")
            continue
        lines = form.head("f")
        for name, value in arguments.items():
            raw = value if name in texts["f"] else json.dumps(value)
            lines += f"<parameter={name}>\n{raw}\n</parameter>\n"
        parts.append(lines + "</function>")
    return form.before + (form.between or "").join(parts) + form.after


def read(form, text, rng):
    """(content, [(name, arguments)]) of a text that comes in random pieces."""
    reader, at, content, calls = CallReader(form, TEXTS), 0, "", []
    while at < len(text) or not at:
        n = rng.choice((1, 1, 2, 5, 40))
        for kind, value in reader.push(text[at : at + n], at + n >= len(text)):
            if kind == "content":
                content += value
            elif kind == "call":
                calls.append([value, ""])
            else:
                calls[-1][1] += value
        at += n
    assert reader.n_calls == len(calls)
    assert reader.are_whole == bool(calls and _is_json(calls[-1][1]))
    return content, calls


def _is_json(text):
    try:
        return bool(text) and json.loads(text) is not None
    except ValueError:
        return False


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_calls_in_any_pieces(form):
    for seed in range(30):
        rng = random.Random(seed)
        n = 1 if form.between is None else rng.randint(1, 4)
        given = rng.choices([a for a in ARGUMENTS if form.key or "</tool_call>" not in str(a)], k=n)
        text = written(form, given)
        said = "Let me see.\n\n" if form.has_text and seed % 2 else ""
        content, calls = read(form, said + text, rng)
        assert content == said.rstrip()
        assert [(name, json.loads(arguments)) for name, arguments in calls] == [
            ("f", arguments) for arguments in given
        ]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_content_without_calls(form):
    for text in ("", "<", "<tool", "<tools>", " a \n", '{"name"', 'x {"name": "f"', "a <tool_cal"):
        for seed in range(8):
            assert read(form, text, random.Random(seed)) == (text, [])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_any_text_at_all(form):
    """Fuzzed: what a model could write without a grammar, and calls that are cut, damaged, doubled.

    The news are the same however the text comes, and nothing of it is repeated or made up.
    """
    words = [form.before, form.between or "", form.after, form.head("f"), "{", "}", '"', "\\", "\n",
             "<parameter=a>\n", "\n</parameter>\n", "</function>", "x", '{"a": 1}', "<", "\u20ac",
             '{"name": "', "<function="]  # fmt: skip
    for seed in range(300):
        rng = random.Random(seed)
        text = "".join(rng.choices(words, k=rng.randrange(12)))
        if seed % 3 == 0:
            whole = written(form, rng.choices(ARGUMENTS[1:4], k=1))
            text = whole[: rng.randrange(len(whole))] + text
        found = [read_loosely(form, text, random.Random(i)) for i in range(3)]
        assert found[0] == found[1] == found[2]
        content, calls = found[0]
        assert len(content) <= len(text) and text.startswith(content[:1])
        if form.key is not None:
            assert all(arguments in text for _, arguments in calls)


def read_loosely(form, text, rng):
    reader, at, content, calls = CallReader(form), 0, "", []
    while at < len(text) or not at:
        n = rng.choice((1, 2, 7))
        for kind, value in reader.push(text[at : at + n], at + n >= len(text)):
            if kind == "content":
                content += value
            elif kind == "call":
                calls.append([value, ""])
            else:
                calls[-1][1] += value
        at += n
    return content, calls


@pytest.mark.parametrize("form", TEMPLATES, ids=lambda form: form.name)
def test_what_a_template_writes_is_what_is_read(form):
    """A call that is sent back is in the prompt as the model wrote it."""
    arguments = {"a": "x", "n": 5}
    call = call_of(form, "c1", "f", arguments)
    messages = [{"role": "user", "content": "Go!"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "done", "name": "f", "tool_call_id": "c1"}]  # fmt: skip
    special = SpecialTokens(["<|im_end|>", "<|eot_id|>"])
    pieces = ChatTemplate(TEMPLATES[form]).pieces(messages, special, tools=[TOOL])
    text = "".join(piece for piece, _ in pieces)
    assert "It <|im_end|> does." in text and "done" in text
    assert any("It <|im_end|> does." in piece and not known for piece, known in pieces)
    reply = written(form, [arguments])
    if form.is_flat:  # the list is indented
        reply = text[text.index("<tool_call>") : text.index("</tool_call>")] + "</tool_call>"
    assert reply in text
    assert (
        read(form, reply, random.Random(1)) == ("", [["f", json.dumps(arguments)]]) or form.is_flat
    )
    (_, (found,)) = read(form, reply, random.Random(1))
    assert (found[0], json.loads(found[1])) == ("f", arguments)
