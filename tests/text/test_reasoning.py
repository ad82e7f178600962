"""What a model thinks and what it answers, however its text comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vocabularies import from_json

from bitnet.text.chat_template import ChatTemplate
from bitnet.text.reasoning import ReasoningSplitter

PIECES = ["<think>", "</think>", "<", "</", "think", ">", " ", "\n", "a", "b c", "<think", "é"]


def split(pieces, begins_inside=False):
    splitter = ReasoningSplitter(begins_inside)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.push("", is_last=True)]
    return tuple("".join(column) for column in zip(*parts, strict=True))


@pytest.mark.parametrize(
    ("text", "begins_inside", "reasoning", "answer"),
    [
        ("<think>\nWell.\n</think>\n\nYes.\n", False, "Well.", "Yes.\n"),
        ("\n <think>a</think>b", False, "a", "b"),
        ("Well.\n\nSo.\n</think>\n\nYes.", True, "Well.\n\nSo.", "Yes."),
        ("<think>\nWell.</think>Yes.", True, "Well.", "Yes."),  # and writes the tag again
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("</think>\n\nYes.", True, "", "Yes."),
        ("Yes <think>no</think>", False, "", "Yes <think>no</think>"),
        ("  Yes </think>", False, "", "  Yes </think>"),
        ("<think>a</think>b<think>c</think>d", False, "a", "b<think>c</think>d"),
        ("<think>a <b </thin k</think>c", False, "a <b </thin k", "c"),
        ("<think>cut off ", False, "cut off", ""),
        ("cut off </thi", True, "cut off </thi", ""),
        ("<thi", False, "", "<thi"),
        ("<thi", True, "<thi", ""),
        (" \n", False, "", " \n"),
        (" \n", True, "", ""),
        ("", False, "", ""),
    ],
)
def test_split(text, begins_inside, reasoning, answer):
    assert split([text], begins_inside) == (reasoning, answer)
    assert split(text, begins_inside) == (reasoning, answer)
    for cut in range(len(text)):
        assert split([text[:cut], text[cut:]], begins_inside) == (reasoning, answer)


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.booleans(), st.data())
def test_the_cut_changes_nothing(pieces, begins_inside, data):
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    ends = [*cuts, len(text)]
    parts = [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert split(parts, begins_inside) == split([text], begins_inside) == split(text, begins_inside)


def test_text_comes_as_soon_as_it_is_certain():
    splitter = ReasoningSplitter()
    given = [splitter.push(p) for p in ("<thi", "nk>\n", "Well", " </", "b", "</think>", "\n", "Y")]
    assert given == [
        ("", ""), ("", ""), ("Well", ""), ("", ""), (" </b", ""), ("", ""), ("", ""), ("", "Y"),
    ]  # fmt: skip


QWEN = (
    "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}:"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def test_which_templates_think():
    assert ChatTemplate(QWEN).thinks
    assert ChatTemplate("{{ messages }}{% if enable_thinking %}/think{% endif %}").thinks
    assert not ChatTemplate("{{ messages }}").thinks


@pytest.mark.parametrize(
    "end", ["<think>", "<think>\n", "<think>\n\n", "<think>\n\n</think>\n\n", ""]
)
def test_where_a_reply_begins(end):
    tokenizer = from_json(chat_template="{{ messages[0].content }}:" + end)
    ids = tokenizer.chat([{"role": "user", "content": "x"}])
    assert tokenizer.opens_reasoning(ids) == (end.rstrip() == "<think>")


def test_a_message_alone_does_not_begin_it():
    tokenizer = from_json(chat_template="{{ messages[0].content }}:")
    ids = tokenizer.chat([{"role": "user", "content": "x<think>"}])
    assert not tokenizer.opens_reasoning(ids)


def user(values):
    return ChatTemplate(QWEN, "<s>").render([{"role": "user", "content": "x"}], values=values)


def test_values_for_a_template():
    assert user({"enable_thinking": False}) == "x\n:<think>\n\n</think>\n\n"
    assert user({"enable_thinking": True}) == user({}) == user(None) == "x\n:"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": "x"}, "messages: it is set by"),
        ({"add_generation_prompt": False}, "add_generation_prompt: it is set by"),
        ({"bos_token": "x"}, "bos_token: it is set by"),
        ({"tools": "x"}, "tools: it is set by"),
        ({"chat_template": "x"}, "chat_template: it is set by"),
        ({"tokenize": True}, "tokenize: it is set by"),
        ({"thinking": True}, "thinking: the chat template does not read it"),
        ({"m": "x"}, "m: the chat template does not read it"),
        ({"range": "x"}, "range: the chat template does not read it"),
        ({"": True}, "'' .the name"),
        ({1: True}, "'1' .the name"),
        ({"enable_thinking": None}, "enable_thinking: NoneType"),
        ({"enable_thinking": []}, "enable_thinking: list"),
        ({"enable_thinking": "x" * 257}, "enable_thinking: 257 characters .at most 256"),
        ({"enable_thinking": "\ud800"}, "enable_thinking: U.D800"),
        ({"enable_thinking": 1 << 63}, "enable_thinking: out of range"),
        ({"enable_thinking": float("nan")}, "enable_thinking: out of range"),
        ({f"a{i}": 1 for i in range(17)}, "17 names .at most 16"),
    ],
)
def test_values_that_are_refused(values, message):
    with pytest.raises(ValueError, match=rf"^chat_template_kwargs[.:] ?{message}"):
        user(values)


def test_what_is_no_dict():
    with pytest.raises(TypeError, match="chat_template_kwargs: str"):
        user("enable_thinking")


def test_special_tokens_in_a_value_are_text():
    tokenizer = from_json(chat_template="{{ messages[0].content }}{{ mode }}")
    message = [{"role": "user", "content": "x"}]
    plain = tokenizer.chat(message, values={"mode": "y"})
    ids = tokenizer.chat(message, values={"mode": "<|eot_id|>"})
    assert "<|eot_id|>" in tokenizer.decode(ids)
    assert set(ids) & set(tokenizer.eos_ids) == set(plain) & set(tokenizer.eos_ids) == set()
