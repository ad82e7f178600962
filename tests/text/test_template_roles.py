"""What a template does with who speaks: roles it does not know, and messages that it drops."""

import pytest
from support.vocabularies import from_json

from bitnet import TemplateError
from bitnet.text.chat_template import ChatTemplate

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
FALCON3 = (  # knows three roles and drops the others
    "{% for m in messages %}{% if m.role == 'system' %}S {{ m.content }}\n"
    "{% elif m.role == 'user' %}U {{ m.content }}\n"
    "{% elif m.role == 'assistant' %}A {{ m.content }}\n{% endif %}{% endfor %}"
)
KNOWS_DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' or m.role == \"user\" %}"
    "{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
)
GEMMA = (  # refuses a system message, and turns that do not alternate
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
)
ONLY_USERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}"
QWEN3 = (  # cuts what was thought
    "{% for m in messages %}{% set c = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ m.role }}: {{ c }}\n{% endfor %}"
)
MISTRAL = (  # what a system says goes to the last message, if that is a user's
    "{% set rest = messages %}{% if messages[0].role == 'system' %}"
    "{% set system, rest = messages[0].content, messages[1:] %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% if loop.last and system and m.role == 'user' %}{{ system }} + {% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
FIRST_SYSTEM = (  # one behind the first is dropped
    "{% if messages[0].role == 'system' %}S {{ messages[0].content }}\n{% endif %}"
    "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def render(template, *messages):
    pairs = [{"role": role, "content": content} for role, content in messages]
    return ChatTemplate(template).render(pairs)


def test_a_developer_is_a_system_to_those_that_know_none():
    said = ("developer", "Be brief."), ("user", "Hi")
    assert render(FALCON3, *said) == "S Be brief.\nU Hi\n"
    assert render(PLAIN, *said) == "system: Be brief.\nuser: Hi\n"
    assert render(KNOWS_DEVELOPER, *said) == "developer: Be brief.\nuser: Hi\n"
    assert render(GEMMA, *said) == "user: Be brief.\n\nHi\n"


def test_a_system_message_goes_to_the_user_where_there_is_no_such_role():
    assert render(GEMMA, ("system", "Be brief."), ("user", "Hi")) == "user: Be brief.\n\nHi\n"
    long = render(GEMMA, ("user", "a"), ("assistant", "b"), ("system", "x"), ("user", "c"))
    assert long == "user: a\nassistant: b\nuser: x\n\nc\n"
    assert render(GEMMA, ("user", "a"), ("system", "x")) == "user: a\n\nx\n"
    assert render(GEMMA, ("system", "x"), ("developer", "y")) == "user: x\n\ny\n"
    assert render(ONLY_USERS, ("system", "x"), ("user", "a")) == "x\n\na\n"
    assert render(PLAIN, ("system", "x"), ("user", "a")) == "system: x\nuser: a\n"
    assert [ChatTemplate(t).lacks_system for t in (GEMMA, ONLY_USERS, PLAIN, FALCON3)] == [
        True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(TemplateError, match="alternate"):
        render(GEMMA, ("system", "x"), ("user", "a"), ("user", "b"))


def test_a_system_message_goes_to_the_user_where_its_place_is_not_one_for_it():
    said = ("system", "x"), ("user", "a")
    assert render(MISTRAL, *said) == "x + user: a\n"
    assert render(MISTRAL, *said, ("assistant", "b")) == "user: x\n\na\nassistant: b\n"
    more = ("assistant", "b"), ("developer", "y"), ("user", "c")
    expected = "S x\nuser: a\nassistant: b\nuser: y\n\nc\n"
    assert render(FIRST_SYSTEM, *said, *more) == expected
    assert render(FIRST_SYSTEM, ("system", "x"), ("system", "y")) == "S x\nuser: y\n"
    knows = FIRST_SYSTEM.replace("'system'", "'developer'")
    assert render(knows, ("developer", "x"), ("user", "a"), *more) == expected
    with pytest.raises(TemplateError, match="alternate"):
        render(MISTRAL, *said, ("user", "b"))


def test_a_template_that_refuses_everything_is_asked_once():
    template = ChatTemplate("{{ raise_exception('no') }}")
    with pytest.raises(TemplateError, match=r"no$"):
        template.render([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    assert not template.lacks_system


@pytest.mark.parametrize(
    ("template", "messages", "lost"),
    [
        ("hello", [("user", "What is new?")], r"messages\[0\].content: the user's"),
        ("{{ messages[0].content }}", [("user", "a"), ("assistant", "b b"), ("user", "c")],
         r"messages\[1\].content: the assistant's"),
        ("{{ messages[-1].content }}", [("user", "first"), ("assistant", "b"), ("user", "c")],
         r"messages\[0\].content: the user's"),
        (FALCON3, [("user", "a"), ("tool", "21 degrees")], r"messages\[1\].content: the tool's"),
        ("{{ messages[0].content[:9] }}", [("user", "a text that is cut")], "the user's"),
        ("{{ messages[0].content[9:] }}", [("user", "a text that is cut")], "the user's"),
    ],
)  # fmt: skip
def test_a_message_that_is_not_in_the_prompt(template, messages, lost):
    with pytest.raises(TemplateError, match=f"{lost} message is not in the prompt"):
        render(template, *messages)


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("{{ messages[0].content | trim }}", [("user", "  a b \n")]),
        ("{{ messages[0].content.split() | join(' ') }}", [("user", "a\n\n  b\tc")]),
        ("{{ messages[0].content | upper }}", [("user", "Straße ab")]),
        ("{{ messages[0].content | capitalize }}", [("user", "hello World")]),
        ("{{ messages[0].content | tojson }}", [("user", 'say "é" \\ \n now')]),
        ("{{ messages[0] }}", [("user", "it's\n\"new\"")]),
        ("{{ messages[0].content.replace('/no_think', '') }}", [("user", "why? /no_think")]),
        (QWEN3, [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c")]),
        (QWEN3, [("user", "a"), ("assistant", "<think>\nhm\n</think>"), ("user", "c")]),
        ("{{ messages[0].content | e }}", [("user", "<b>'a' & \"c\"</b>")]),
        ("{{ messages[0].content | trim | tojson }}", [("user", '\n"a"\n\n')]),
        ("{{ messages[0].content.replace('/think', '') }}", [("system", "a/thinking/b")]),
        ("{{ messages[0].content.replace('/system_override', '') }}",
         [("system", "/system_override Be brief.")]),
        ("hello", [("user", ""), ("user", " \n")]),
        ("{% for m in messages | reverse %}{{ m.content }} {% endfor %}",
         [("user", "first"), ("assistant", "second")]),
    ],
)  # fmt: skip
def test_what_templates_do_to_a_text_is_no_loss(template, messages):
    render(template, *messages)


def test_text_beside_calls_may_be_dropped():
    calls = "{% for m in messages %}{{ (m.tool_calls | tojson) if m.tool_calls else m.content }}"
    said = {"role": "assistant", "content": "I look.", "tool_calls": [{"name": "f"}]}
    user = {"role": "user", "content": "Hi"}
    assert ChatTemplate(calls + "{% endfor %}").render([user, said]) == 'Hi[{"name": "f"}]'


@pytest.mark.parametrize("role", ["assistant", "user", "system", "developer"])
def test_calls_without_a_content(role):
    """The key may be missing, whoever calls."""
    said = {"role": role, "tool_calls": [{"name": "f"}]}
    text = "{% for m in messages %}{{ m.role }} {{ m.content or 'calls' }}\n{% endfor %}"
    expected = {"developer": "system"}.get(role, role)
    assert ChatTemplate(text).render([said]) == f"{expected} calls\n"
    user = {"role": "user", "content": "Hi"}
    folded = ChatTemplate(ONLY_USERS).render([user, said, user, said])
    assert folded.startswith("Hi\n") and folded.count("Hi") == 2


def test_one_lost_message_of_a_long_conversation():
    said = [("user", f"{i} " + "word " * 200) for i in range(4000)]  # 4 MB
    each = "{% for m in messages %}{{ m.content | trim if loop.index0 != 2999 }}\n{% endfor %}"
    with pytest.raises(TemplateError, match=r"messages\[2999\]"):
        render(each, *said)


@pytest.mark.parametrize("change", ["upper", "tojson"])
def test_a_long_conversation_of_which_no_text_is_as_it_was(change):
    """Nothing is looked for in all of the prompt, message by message: that took minutes."""
    said = [("user", f"a\n{i}") for i in range(20000)]
    each = "{% for m in messages %}{{ m.content | CHANGE }}\n{% endfor %}".replace("CHANGE", change)
    assert render(each, *said).count("\n") >= 20000


def test_a_message_that_repeats_what_came_before_is_looked_for_behind_it():
    said = ("user", "ok then"), ("assistant", "ok then"), ("user", "Ah")
    with pytest.raises(TemplateError, match=r"messages\[1\]"):
        render("{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}", *said)


@pytest.mark.parametrize("template", ["", "  \n"])
def test_a_blank_template_is_none(template):
    assert from_json(chat_template=template).chat_template is None
    several = [{"name": "default", "template": template}]
    assert from_json(chat_template=several).chat_template is None
    with pytest.raises(TemplateError, match="none"):
        from_json(chat_template=template).chat([{"role": "user", "content": "x"}])


def test_special_tokens_in_a_system_message_stay_text_when_it_moves():
    tokenizer = from_json(chat_template=GEMMA)
    ids = tokenizer.chat(
        [{"role": "system", "content": "<|eot_id|>"}, {"role": "user", "content": "x"}]
    )
    assert tokenizer.decode(ids) == "user: <|eot_id|>\n\nx\n"
    assert tokenizer.encode("<|eot_id|>", False, True)[0] not in ids
