"""The chat page in headless Chromium: by keyboard alone, for screen readers, in both themes and two
sizes, checked by axe-core where AXE names its file (.ci/long page installs it)."""

import os
from pathlib import Path

import pytest
from support.chat_page import (
    CHAT,
    DESKTOP,
    PHONE,
    answer_with,
    ask,
    chat_page,
    chromium,
    events,
    replies,
    until,
    wait_for_replies,
)
from support.server_process import NO_END, ServerProcess

AXE = os.environ.get("AXE")
MARKDOWN = """## A heading

Some *text* with `code`, a [link](https://example.org) and $x$.

```python
def f(x):  # a comment
    return "a" + str(1) if x else None
```

| a | b |
|---|---|
| 1 | 2 |

> quoted
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as one:
        yield one


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")


def tab_to(page, name):
    """Press Tab until the element of this id or text has the focus."""
    for _ in range(60):
        if focused(page) == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{name} is not reached")


def test_all_of_it_by_keyboard(browser, server):
    """Send, edit, regenerate, rename, delete, settings, memory: the focus is never lost."""
    with chat_page(browser, server) as page:
        answer_with(page, events("One"), events("Two"), events("Three"))
        assert focused(page) == "prompt"
        page.keyboard.type("Who goes there?")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("And why?")
        page.keyboard.press("Enter")
        assert wait_for_replies(page) == ["One"]
        assert page.inner_text("article.user .plain") == "Who goes there?\nAnd why?"
        tab_to(page, "Regenerate")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('article.assistant').textContent.includes('Two')")
        assert focused(page) == "log"
        tab_to(page, "Edit")
        page.keyboard.press("Space")
        page.keyboard.press("Control+A")
        page.keyboard.type("Say it again")
        page.keyboard.press("Control+Enter")
        until(page, "document.querySelector('article.assistant').textContent.includes('Three')")
        tab_to(page, "new")
        tab_to(page, "⋯")
        page.keyboard.press("Enter")
        assert focused(page) == "rename"
        page.keyboard.press("Enter")
        page.keyboard.type("A name")
        page.keyboard.press("Enter")
        until(page, "document.activeElement.textContent === 'A name'")
        tab_to(page, "open-settings")
        page.keyboard.press("Enter")
        assert focused(page) == "system"
        tab_to(page, "temperature")
        page.keyboard.type("0.5")
        tab_to(page, "Done")
        page.keyboard.press("Enter")
        assert not page.is_visible("#settings") and focused(page) == "open-settings"
        page.focus("#memory")
        page.keyboard.press("Enter")
        assert page.is_visible("#pool")
        page.keyboard.press("Escape")
        assert not page.is_visible("#pool") and focused(page) == "memory"
        page.keyboard.press("Control+Shift+O")
        assert focused(page) == "prompt" and not replies(page)
        page.focus("#list .more")
        page.keyboard.press("Enter")
        tab_to(page, "delete")
        page.keyboard.press("Enter")
        until(page, "document.querySelectorAll('#list li').length === 0")
        assert focused(page) == "new"
        tab_to(page, "Undo")
        page.keyboard.press("Enter")
        until(page, "document.querySelectorAll('#list li').length === 1")
        assert focused(page) == "log"


def test_every_button_and_field_has_a_name_of_its_own(browser, server):
    with chat_page(browser, server) as page:
        answer_with(page, events(MARKDOWN))
        for n in (1, 2):
            ask(page, "Who goes there?")
            wait_for_replies(page, n)
        named = "[...document.querySelectorAll('#messages .actions button')].map(b => b.ariaLabel)"
        names = page.evaluate(named)
        assert len(set(names)) == len(names) and "Copy message 2" in names
        assert page.evaluate("document.querySelector('#spoken').ariaLive") == "polite"
        assert page.evaluate("document.querySelector('#spoken').textContent").startswith("##")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_theme_is_chosen_over_the_systems(browser, server, theme):
    other = {"light": "dark", "dark": "light"}[theme]
    with chat_page(browser, server, color_scheme=other) as page:
        page.click("#open-settings")
        page.select_option("#theme", theme)
        page.click("text=Done")
        page.reload()
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        level = int(colour.split("(")[1].split(",")[0])
        assert level < 64 if theme == "dark" else level > 192


def test_nothing_moves_for_those_who_ask(browser, server):
    animation = "getComputedStyle(document.querySelector('.busy .prose'), '::after').animationName"
    for motion, name in (("reduce", "none"), ("no-preference", "blink")):
        with chat_page(browser, server, reduced_motion=motion) as page:
            page.route(CHAT, lambda route: route.continue_(
                post_data=route.request.post_data_json | {"logit_bias": NO_END}
            ))  # fmt: skip
            ask(page, "Who goes there?")
            page.wait_for_selector(".busy .prose")
            assert page.evaluate(animation) == name
            page.keyboard.press("Escape")
            page.wait_for_selector("#send:has-text('Send')")


def situations(page):
    """Go through what the page can show; yield the name of each."""
    yield "empty"
    thought = events(MARKDOWN, reasoning="I *think*.")
    answer_with(page, thought, events("Yes.", prompt=480, n=20), events("No.", reason="length"))
    for n in (1, 2):
        ask(page, "Who goes there?")
        wait_for_replies(page, n)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    until(page, "document.querySelectorAll('.hl-keyword').length > 0")
    yield "a conversation, full"
    page.click("article.user >> nth=0 >> text=Edit")
    yield "an edited message"
    page.keyboard.press("Escape")
    page.click("#memory")
    yield "the memory"
    page.keyboard.press("Escape")
    if page.is_visible("#open-list"):
        page.click("#open-list")
        yield "the list"
    page.click("#list .more >> nth=0")
    yield "the menu"
    page.keyboard.press("Escape")
    page.click("#open-settings")
    page.fill("#temperature", "900")
    yield "the settings"
    page.keyboard.press("Escape")
    if page.is_visible("#close-list"):
        page.click("#close-list")
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.fulfill(status=401, body="{}"))
    ask(page, "Who goes there?")
    page.wait_for_selector("#key-dialog[open]")
    yield "the key"
    page.keyboard.press("Escape")
    page.wait_for_selector(".problem")
    yield "a problem"
    page.evaluate("document.querySelector('#log').scrollTop = 0")
    page.wait_for_selector("#to-end:visible")
    yield "scrolled"
    page.route("**/v1/models", lambda route: route.continue_())
    page.route("**/tokenizer_info", lambda route: route.fulfill(json={"chat_template": None}))
    page.reload()
    page.wait_for_selector("#text:visible")
    page.fill("#text", "Once")
    yield "a text"


@pytest.mark.skipif(AXE is None, reason="AXE names no file of axe-core")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_contrast_and_roles(browser, server, theme, size):
    """axe-core finds nothing: WCAG 2.2 A and AA, and its best practices."""
    axe, found = Path(AXE).read_text(), {}
    with chat_page(browser, server, color_scheme=theme, viewport=size, bypass_csp=True) as page:
        for name in situations(page):
            page.evaluate(f"window.axe || (() => {{ {axe} }})()")
            result = page.evaluate("axe.run(document)")
            assert len(result["passes"]) > 10
            found |= {
                f"{name}: {violation['id']}: {node['target']}": node["failureSummary"]
                for violation in result["violations"]
                for node in violation["nodes"]
            }
    assert found == {}
