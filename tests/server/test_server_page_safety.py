"""The chat page in headless Chromium: nothing that a model, a name or a file says is run, loaded or
made HTML, and Markdown is what it should be, however it comes in pieces."""

import json
import time

import pytest
from support.chat_page import (
    answer_with,
    ask,
    chat_page,
    chromium,
    events,
    titles,
    until,
    wait_for_replies,
)
from support.server_process import ServerProcess

ATTACKS = [
    "<script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    "<svg onload=window.hurt=1><iframe srcdoc='<script>parent.hurt=1</script>'></iframe>",
    "[a](javascript:window.hurt=1) [b](JaVa\tScRiPt:window.hurt=1) [c](data:text/html,<script>)",
    "[d](&#106;avascript:window.hurt=1) [e](vbscript:x) <javascript:window.hurt=1>",
    "![i](https://elsewhere.example/a.png) ![j](javascript:window.hurt=1)",
    '[f](https://x.example "\\" onmouseover=window.hurt=1 x=\\"")',
    "```html\n<script>window.hurt = 1</script><img src=x onerror=window.hurt=1>\n```",
    '```"><img/src=x/onerror=window.hurt=1>\n```',
    "$<img src=x onerror=window.hurt=1>$ and $$\n<script>window.hurt=1</script>\n$$",
    "| <img src=x onerror=window.hurt=1> |\n|---|\n| <script>window.hurt=1</script> |",
    "<a href='javascript:window.hurt=1'>g</a> <form action=//elsewhere.example><input></form>",
    "<style>* { display: none }</style><base href=//elsewhere.example><meta http-equiv=refresh>",
    "`<script>window.hurt = 1</script>` **<b onclick=window.hurt=1>x</b>**",
    "[h]: javascript:window.hurt=1\n\n[h] and [k][h]",
]
# What no answer may bring in, and what links may not be
FOREIGN = """[...document.querySelectorAll('#messages *, #list *, #title, #notice *')].filter(e =>
    /^(script|style|img|iframe|object|embed|link|meta|base|form|input|video|audio|svg)$/i
        .test(e.localName) || [...e.attributes].some(a => a.name.startsWith('on')) ||
    (e.href && !/^(https?|mailto):/.test(e.href))).map(e => e.outerHTML)"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as one:
        yield one


@pytest.fixture
def page(browser, server):
    with chat_page(browser, server) as one:
        yield one
        assert one.evaluate("window.hurt") is None
        assert one.evaluate(FOREIGN) == []


def test_what_a_model_writes(page):
    bodies = [events(*[attack[i : i + 3] for i in range(0, len(attack), 3)]) for attack in ATTACKS]
    answer_with(page, *bodies)
    for n, _ in enumerate(ATTACKS, 1):
        ask(page, "go on")
        wait_for_replies(page, n)
        assert page.evaluate(FOREIGN) == []
    for link in page.locator(".prose a").all():
        link.dispatch_event("mouseover")
        assert link.get_attribute("rel") == "noopener noreferrer"
    texts = " ".join(page.locator("article.assistant").all_inner_texts())
    assert "<script>window.hurt = 1</script>" in texts  # it is there to read
    page.reload()
    page.click("#list .open")
    wait_for_replies(page, len(ATTACKS))


def test_what_it_thinks(page):
    answer_with(page, *(events("Yes.", reasoning=attack) for attack in ATTACKS))
    for n, _ in enumerate(ATTACKS, 1):
        ask(page, "go on")
        wait_for_replies(page, n)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate(FOREIGN) == []


def test_what_the_user_and_the_system_prompt_say(page):
    answer_with(page, events("Yes."))
    attack = "\n".join(ATTACKS)
    page.click("#open-settings")
    page.fill("#system", attack)
    page.click("text=Done")
    ask(page, attack)
    wait_for_replies(page)
    assert page.inner_text("article.user .plain") == attack.replace("\t", "\t")
    page.click("article.user >> text=Edit")
    assert page.input_value("article .edit") == attack


def test_names_of_conversations(page):
    answer_with(page, events("Yes."))
    ask(page, ATTACKS[1])
    wait_for_replies(page)
    assert titles(page) == [ATTACKS[1]] and page.inner_text("#title") == ATTACKS[1]
    page.click("#list .more")
    page.click("#rename")
    page.fill("#list input", ATTACKS[2])
    page.keyboard.press("Enter")
    until(page, f"document.querySelector('#list .open')?.textContent === {json.dumps(ATTACKS[2])}")
    page.click("#list .more")
    page.click("#delete")
    page.wait_for_selector("#notice:has-text('<svg')")


def test_imported_files(page):
    attack = "\n\n".join(ATTACKS)
    chat = {
        "kind": "chat", "id": attack, "title": ATTACKS[1], "named": True, "__proto__": {"hurt": 1},
        "messages": [
            {"role": "user", "content": attack, "stats": {"tokens": attack}},
            {"role": "assistant", "content": attack, "reasoning": attack, "reason": attack,
             "stats": {"tokens": attack, "rate": 1, "first": 1, "cached": 1, "prompt": attack}},
        ],
    }  # fmt: skip
    text = {"kind": "text", "title": attack, "named": True, "text": attack, "written": [3]}
    data = {"format": "bitnet-conversations", "version": 1, "conversations": [chat, text]}
    file = {"name": ATTACKS[1], "mimeType": "x/y", "buffer": json.dumps(data).encode()}
    page.set_input_files("#file", file)
    page.wait_for_selector("#notice:has-text('2 conversations')")
    page.locator("#list .open").filter(has_text="<img").first.click()
    page.wait_for_selector("article.assistant, #text:visible")
    assert page.locator(".figures").count() == 0
    assert page.evaluate("({}).hurt") is None
    page.set_input_files("#file", file | {"buffer": b"{"})
    page.wait_for_selector("#notice:has-text('Not imported: <img')")


def test_the_browser_refuses_html(browser, server):
    """Trusted Types: also of a mistake that we have not made yet."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    for code in ("document.body.innerHTML = '<b>x</b>'",
                 "document.createElement('script').text = 'x'"):  # fmt: skip
        assert page.evaluate(f"try {{ {code}; 'done' }} catch (e) {{ e.name }}") == "TypeError"
    page.close()


MARKDOWN = """# One
Some **bold**, *slanted* and ~~struck~~ text with `code_a` and
a second line, https://example.org/a and file.py.

- a
- b
  1. c
  2. d

> quoted

| a | b |
|:--|--:|
| 1 | 2 |

```python
def f(x):  # <b>
    return "a"
```

Costs $5 and $10, but $a_1*b_2*c$ and \\(x_1 * y*\\) are formulas, and

$$
a_1 * b *
$$

---
[later][ref]

    indented

[ref]: https://example.org/ref
"""


def test_markdown_in_any_pieces(page):
    """The elements are the same whether a text comes at once, by letters, or is loaded."""
    bodies = [events(MARKDOWN), events(*MARKDOWN), events(*MARKDOWN.splitlines(True))]
    answer_with(page, *bodies)
    found = set()
    for n, _ in enumerate(bodies, 1):
        ask(page, "go on")
        wait_for_replies(page, n)
        until(page, f"document.querySelectorAll('.hl-keyword').length === {2 * n}")
        found.add(page.locator("article.assistant .prose").nth(n - 1).inner_html())
    (html,) = found
    for piece in (
        '<h3 class="h1">One</h3>', "<strong>bold</strong>", "<em>slanted</em>", "<s>struck</s>",
        "<code>code_a</code>", "<li>a</li>", "<ol><li>c</li>", "<blockquote><p>quoted",
        '<td class="right">2</td>', "<span>python</span>", "Costs $5 and $10, but",
        '<code class="math">$a_1*b_2*c$</code>', '<code class="math">\\(x_1 * y*\\)</code>',
        '<hr>', 'href="https://example.org/ref"', 'href="https://example.org/a"', "file.py.",
        "indented",
    ):  # fmt: skip
        assert piece in html, piece
    assert 'class="math"' in html and "a_1 * b *" in html


def test_hard_texts_take_no_time(page):
    """Each of these is quadratic or worse for one parser of Markdown or another."""
    hard = [
        "**x [a*b " * 5000, ">" * 20000, "[" * 20000, "*a " * 8000, "`" * 20000, "$a " * 8000,
        "".join(" " * 2 * i + "- a\n" for i in range(200)), "a" + ".a" * 8000 + "@",
        "```py\n" + "x" * 50000,
    ]  # fmt: skip
    answer_with(page, *(events(text[: len(text) // 2], text[len(text) // 2 :]) for text in hard))
    for n, text in enumerate(hard, 1):
        ask(page, "go on")
        begin = time.monotonic()
        wait_for_replies(page, n)
        assert time.monotonic() - begin < 15, text[:20]  # a browser's tab would hang for minutes
        page.evaluate("document.querySelector('#messages').textContent.length")
