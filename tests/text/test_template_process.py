"""Templates that would end or stall a process: a TemplateError is all that they end in.

Each is a hundred bytes or so, as a file from anywhere may hold it.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bitnet import TemplateError
from bitnet.text import template_process
from bitnet.text.chat_template import ChatTemplate

USER = {"role": "user", "content": "Hello"}
GOOD = ChatTemplate("{{ messages[0].content }}!")
NESTED = (
    "{% set ns = namespace(l=[]) %}{% for i in range(60000) %}{% set ns.l = [ns.l] %}{% endfor %}"
)
NESTED_DICT = NESTED.replace("[ns.l]", "{'a': ns.l}")
ITSELF = "{% set ns = namespace() %}{% set ns.x = ns %}"
DOUBLED = "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = OF %}{% endfor %}"

TOO_DEEP = {
    "json": NESTED + "{{ ns.l | tojson }}",
    "json of dicts": NESTED_DICT + "{{ ns.l | tojson }}",
    "print": NESTED + "{{ ns.l }}",
    "print dicts": NESTED_DICT + "{{ ns.l }}",
    "text": NESTED + "{% set x = ns.l | string %}",
    "compare": NESTED + NESTED.replace("ns", "o") + "{{ ns.l == o.l }}",
    "sort": NESTED + NESTED.replace("ns", "o") + "{{ [ns.l, o.l] | sort | length }}",
    "in": NESTED + NESTED.replace("ns", "o") + "{{ ns.l in [o.l] }}",
    "key": NESTED + "{% set x = {ns.l: 1} %}{{ x[ns.l] }}",
    "argument": NESTED + "{{ raise_exception(ns.l) }}",
    "a namespace in itself": ITSELF + "{{ ns }}",
    "json of it": ITSELF + "{{ ns | tojson }}",
    "its comparison": ITSELF + ITSELF.replace("ns", "o") + "{{ ns == o }}",
    "in its list": ITSELF.replace("= ns ", "= [ns] ") + "{{ ns.x | join }}",
}
TOO_LONG = {
    "printed": DOUBLED.replace("OF", "[ns.l, ns.l]") + "{{ ns.l }}",
    "compared": DOUBLED.replace("OF", "[ns.l, ns.l]")
    + DOUBLED.replace("OF", "[o.l, o.l]").replace("ns", "o") + "{{ ns.l == o.l }}",
    "summed": DOUBLED.replace("OF", "ns.l + ns.l") + "{{ ns.l | sum }}",
}  # fmt: skip
TOO_LARGE = {
    "width": "{{ '{:1000000000}'.format(1) }}",
    "width of a name": "{{ '{a:>1000000000}'.format(a='x') | length }}",
    "what a list's own method grows": "{% for i in range(40) %}{% set x = messages.extend("
    "messages) %}{% endfor %}",
}  # fmt: skip
SLOW_TO_REWRITE = {
    "a string without an end": "{{ " + "\\'" * 100_000,
    "operands in operands": "{{ '}}' ~ "
    + "2*(" * 1900
    + "a," * 60_000
    + "b"
    + ")%3" * 1900
    + " }}",
}


@pytest.mark.parametrize("template", [*TOO_DEEP.values(), *TOO_LARGE.values()],
                         ids=[*TOO_DEEP, *TOO_LARGE])  # fmt: skip
def test_what_would_end_the_process(template):
    code = (
        "from bitnet import TemplateError\n"
        "from bitnet.text.chat_template import ChatTemplate\n"
        f"user = {USER}\n"
        "for _ in range(2):\n"
        f"    try: print(ChatTemplate({template!r}).render([user])[:99])\n"
        "    except TemplateError as error: print(error)\n"
        f"print(ChatTemplate({GOOD.source!r}).render([user]))\n"
        "status = open('/proc/self/status').read()\n"
        "print(int(status.partition('VmHWM:')[2].split()[0]) >> 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    first, second, good, megabytes = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert first.startswith("chat template") and second.startswith("chat template")
    assert good == "Hello!" and int(megabytes) < 200


@pytest.mark.parametrize("template", SLOW_TO_REWRITE.values(), ids=SLOW_TO_REWRITE)
def test_what_would_take_for_ever_before_it_is_rendered(template):
    code = (
        "import sys\n"
        "from bitnet import TemplateError\n"
        "from bitnet.text.chat_template import ChatTemplate\n"
        f"try: ChatTemplate(sys.stdin.read()).render([{USER}])\n"
        "except TemplateError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=template, capture_output=True, text=True, timeout=20
    )
    assert done.stdout.startswith("chat template")


@pytest.mark.parametrize("template", TOO_LONG.values(), ids=TOO_LONG)
def test_what_would_take_for_ever(template, monkeypatch):
    """It stops at the first of the attempts that a system's message has."""
    monkeypatch.setattr(template_process, "SECONDS", 0.5)
    monkeypatch.setattr(template_process, "_idle", [])
    begin = time.monotonic()
    with pytest.raises(TemplateError, match=r"takes longer than 0\.5 s to render"):
        ChatTemplate(template).render([{"role": "system", "content": "Be brief."}, USER])
    assert time.monotonic() - begin < 10  # 0.6 on a machine that does nothing else
    assert GOOD.render([USER]) == "Hello!"


def test_what_is_printed_takes_steps():
    with pytest.raises(TemplateError, match=r"20000000 characters \(100\d{4} steps\)"):
        ChatTemplate("{{ '{:20000000}'.format(1) }}").render([USER])
    with pytest.raises(TemplateError, match="ran out of fuel"):
        ChatTemplate("{% for i in range(60) %}{{ range(100000) | list }}{% endfor %}").render(
            [USER]
        )


def test_as_many_threads_as_render():
    texts = []
    threads = [
        threading.Thread(
            target=lambda i=i: texts.extend(
                GOOD.render([{"role": "user", "content": f"{i}-{j}"}]) == f"{i}-{j}!"
                for j in range(50)
            )
        )
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [True] * 300
    assert len(template_process._idle) <= template_process.MAX_IDLE


def test_somebody_ends_the_process():
    GOOD.render([USER])
    for process in template_process._idle:
        os.kill(process._process.pid, signal.SIGKILL)
    assert GOOD.render([USER]) == "Hello!"


def test_a_forked_process_renders_in_another():
    GOOD.render([USER])
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            text = GOOD.render([{"role": "user", "content": "child"}])
        finally:
            os._exit(0 if text == "child!" else 1)
    texts = {GOOD.render([USER]) for _ in range(100)}
    assert os.waitpid(pid, 0)[1] == 0
    assert texts == {"Hello!"}


def test_where_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(template_process, "_idle", [])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemplateError, match="no process can be started in which it is rendered"):
        GOOD.render([USER])
    monkeypatch.undo()
    assert GOOD.render([USER]) == "Hello!"


def test_values_that_json_lacks():
    with pytest.raises(TemplateError, match="messages: Object of type complex"):
        GOOD.render([USER | {"other": 1j}])


def test_a_program_that_renders_ends_with_no_process_left():
    code = (
        "from bitnet.text import template_process\n"
        "from bitnet.text.chat_template import ChatTemplate\n"
        f"ChatTemplate({GOOD.source!r}).render([{USER}])\n"
        "print(template_process._idle[0]._process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
