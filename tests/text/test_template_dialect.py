"""What templates use of Jinja2: each as transformers 5.24 renders it, and within limits."""

import pytest

from bitnet import TemplateError
from bitnet.text.chat_template import ChatTemplate
from bitnet.text.template_dialect import rewritten

USER = {"role": "user", "content": " a\nb\n\nc "}


def render(template, **fields):
    """The template's text without the message, which it must show."""
    text = ChatTemplate(template + "##{{ messages[0].content }}").render([USER | fields])
    return text.partition("##")[0]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{%- generation -%} x {%- endgeneration -%} y", "xy"),
        ("{% set q = 0 %}{% generation %}{% set q = 1 %}{% endgeneration %}{{ q }}", "0"),
        ("{{ '%s' % 'x' }}", "x"),
        ("{{ '%s and %d' % ('x', 3) }}", "x and 3"),
        ("{{ 'a%%' % () }}", "a%"),
        ("{{ '%s' % ('x',) }}{{ '%s' % (1 + 2) }}", "x3"),
        ("{{ '%(a)s' % {'a': 5} }}", "5"),
        ('{{ "%.2f" % 3.14159 }}', "3.14"),
        ("{{ '%s' % [1, 'a'] }}", "[1, 'a']"),
        ("{{ '%s' % none }}{{ '%s' % true }}", "NoneTrue"),
        ("{{ '%d items' % 3 + '!' }}{{ 'x' ~ '%s' % 3 }}", "3 items!x3"),
        ("{{ '%s' % messages[0].role | upper }}", "USER"),
        ("{{ ('%s' ~ '!') % 4 }}", "4!"),
        ("{% set s = '<%s>' %}{{ s % 'z' }}{{ s % 7 }}", "<z><7>"),
        ("{% set n = namespace(q='') %}{% set n.q = '%s' % 4 %}{{ n.q }}", "4"),
        ("{{ 7 % 3 }}{{ 2 * 7 % 4 }}{{ 7.5 % 2 }}{{ -7 % 3 }}", "121.52"),
        ("{% set n = 7 %}{{ n % 4 }}{{ -n % 4 }}{{ 2 * n % 4 }}{{ (n + 1) % 4 == 0 }}", "312True"),
        ("{{ messages | length % 2 }}", "1"),
        ("{% for m in [1, 2, 3] %}{{ loop.index0 % 2 == 0 }}{% endfor %}", "TrueFalseTrue"),
        ("{{ 'a,b,c'.rsplit(',', 1) }}{{ 'a b  c'.rsplit() }}", "['a,b', 'c']['a', 'b', 'c']"),
        ("{{ 'a,b,c'.rsplit(',', maxsplit=1)[-1] }}", "c"),
        ("{{ 'x' + 'a,b'.rsplit(',')[1].upper() }}{{ 'a.b'.rsplit('.')|first }}", "xBa"),
        ("{% if 'a,b'.rsplit(',')[0] == 'a' %}y{% endif %}", "y"),
        ("{{ 'a' ~ 'b,c'.rsplit(','.rsplit('x')[0])[1] }}", "ac"),
        ("{{ 'a b c'|wordcount }}{{ \"don't stop-it\"|wordcount }}", "34"),
        ("{{ 'a\\nb\\r\\nc'.splitlines() }}", "['a', 'b', 'c']"),
        ("{{ 'a\\nb\\n'.splitlines(true) }}", "['a\\n', 'b\\n']"),
        ("{{ 'a\\u2028b'.splitlines() }}", "['a', 'b']"),
        ("{% for a in messages[0].content.splitlines() if a %}[{{ a }}]{% endfor %}",
         "[ a][b][c ]"),
        ("{{ messages[0].content.removeprefix(' ').removesuffix('\\nc ') }}", "a\nb\n"),
        ("{{ 'abcb'.partition('b')[2] }}{{ 'abcb'.rpartition('b')[0] }}", "cbabc"),
        ("{{ 'abc'.index('c') }}{{ [1, 2, 3].index(2) }}{{ 'abc'.rindex('a') }}", "210"),
        ("{{ 'aBc'.swapcase() }}{{ \"it's\".title() }}{{ \"it's\"|title }}", "AbCIt'SIt's"),
        ("{{ 1.0 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 0.1 + 0.2 }}", "1.0 3.5 2.0 0.30000000000000004"),
        ("{{ 1e-5 }} {{ 1.5e300 }} {{ 1e22 }} {{ -0.0 }}", "1e-05 1.5e+300 1e+22 -0.0"),
        ("{% raw %}{{ '%s' % x }}{% endraw %}{# {{ 'a' % 1 }} #}", "{{ '%s' % x }}"),
        ("{{ '%} {{ x.rsplit()' }}{{ {'a': {'b': 1}}['a']['b'] }}", "%} {{ x.rsplit()1"),
    ],
)  # fmt: skip
def test_as_transformers_renders_it(template, expected):
    assert render(template) == expected


def test_floats_of_messages():
    fields = {"args": {"a": 1.0, "b": 21.5, "c": 1e-07, "n": 3}}
    assert render("{{ messages[0].args | tojson }}", **fields) == (
        '{"a": 1.0, "b": 21.5, "c": 1e-07, "n": 3}'
    )
    each = "{% for k, v in messages[0].args.items() %}{{ v }}={{ v | tojson }} {% endfor %}"
    assert render(each, **fields) == "1.0=1.0 21.5=21.5 1e-07=1e-07 3=3 "
    assert render("{{ messages[0]['args'].a | tojson(indent=1) }}", **fields) == "1.0"
    assert render("{{ [1.5]|first|tojson }}{{ 2.0|tojson() }}", **fields) == "1.52.0"


def test_lines_of_errors_stay():
    template = "{{ 'a'.rsplit(\n'b'\n) }}\n{{ nobody() }}"
    with pytest.raises(TemplateError, match="line 4"):
        ChatTemplate(template).render([])


@pytest.mark.parametrize(
    "template", ["{{ 'a'.rsplit(", "{{ 'a' % (1 }}", "{% raw %}", "{# x", "{{"]
)
def test_damaged_ones_are_left_to_the_parser(template):
    assert rewritten(template) == template
    with pytest.raises(TemplateError, match="SyntaxError"):
        ChatTemplate(template).render([])


def nested(begin, end, n=400):
    return "{{ " + begin * n + "'x'" + end * n + " }}"


@pytest.mark.parametrize(
    "template",
    [
        nested("'%s' % (", ")"),
        nested("'a'.rsplit(", ")", 300),
        nested("(a % ", ")", 600),
        "{{ a" + " % a" * 900 + " }}",
        "{{ 2 * (1 % 2) }}" * 3000,
    ],
)
def test_expressions_that_grow(template):
    with pytest.raises(TemplateError):
        ChatTemplate(template).render([])


@pytest.mark.parametrize(
    "bomb",
    [
        "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}"
        "{% set n.x = '%s%s' % (n.x, n.x) %}{% endfor %}",
        "{{ '%2000000000d' % 1 }}",
        "{% set n = namespace(x='%s%s') %}{% for i in range(60) %}"
        "{% set n.x = n.x % ('%s%s', n.x) %}{% endfor %}",
        "{% set x = 'a b ' * 100000 %}{% for i in range(100000) %}{% set y = x.rsplit() %}"
        "{% endfor %}",
        "{% set x = 'a b ' * 100000 %}{% for i in range(100000) %}{% set y = x|tojson %}"
        "{% endfor %}",
        "{% set x = 'a b ' * 100000 %}{% for i in range(100000) %}{% set y = x|wordcount %}"
        "{% endfor %}",
    ],
)  # fmt: skip
def test_bombs_run_out_of_steps(bomb):
    with pytest.raises(TemplateError):
        ChatTemplate(bomb).render([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("indent=1000000000", r"tojson\(indent\): 1000000000 \(at most 64\)"),
        ("indent=' ' * 65", r"tojson\(indent\): 65 \(at most 64\)"),
        ("separators=(',' * 64, ':')", r"tojson\(separators\): 65 \(at most 64\)"),
    ],
)
def test_white_space_of_json_has_a_limit(arguments, message):
    """A gigabyte of one value took no steps."""
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(f"{{{{ range(100) | list | tojson({arguments}) }}}}").render([])
    assert render("{{ [1, [2]] | tojson(indent=2) }}") == "[\n  1,\n  [\n    2\n  ]\n]"


def test_json_has_a_limit():
    with pytest.raises(TemplateError, match="tojson of more than 33554432 characters"):
        ChatTemplate("{{ ([range(100000)|list] * 4)|tojson(indent=64) }}").render([])


@pytest.mark.parametrize("value", ["1", "none", "{'index': 1}", "messages", "nobody"])
def test_methods_of_other_values(value):
    with pytest.raises(TemplateError, match="chat template"):
        ChatTemplate("{{ x.removeprefix('a') }}".replace("x", value)).render([])
