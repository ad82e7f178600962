"""The chat page in headless Chromium: meters, models without a template, copying, small screens."""

import re

import pytest
from support.chat_page import (
    CHAT,
    PHONE,
    WHOLE,
    answer_with,
    ask,
    chat_page,
    chromium,
    events,
    import_file,
    store,
    until,
    wait_for_replies,
)  # fmt: skip
from support.paths import DATA
from support.server_process import NO_END, ServerProcess

KEY = "a secret of ours"


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
        store(one, seed="1")
        yield one


def test_the_context_warns(page):
    answer_with(page, events("a", prompt=300, n=20), events("b", prompt=400, n=30),
                events("c", prompt=480, n=20))  # fmt: skip
    for n, name in enumerate(["", "near", "full"], 1):
        ask(page, "word")
        wait_for_replies(page, n)
        until(page, f"document.querySelector('#context').className === '{name}'")
    assert "500 / 512" in page.inner_text("#context")


def test_the_pool_by_purpose(page):
    ask(page, "Who goes there?")
    wait_for_replies(page)
    page.click("#memory")
    purposes = page.locator("#pool-purposes .what").all_inner_texts()
    assert {"scratch", "logits"} <= set(purposes)
    parts = page.locator("#pool-bar .part").count()
    assert parts == len(purposes) and "of the pool's limit of" in page.inner_text("#pool-summary")
    page.keyboard.press("Escape")
    assert not page.is_visible("#pool")


def test_the_chart_of_tokens_a_second(page):
    page.route(CHAT, lambda route: route.continue_(
        post_data=route.request.post_data_json | {"logit_bias": NO_END, "max_tokens": 480}
    ))  # fmt: skip
    ask(page, "Who goes there?")
    wait_for_replies(page)
    points = page.get_attribute("#chart polyline", "points").split()
    assert len(points) >= 2
    assert re.search(r"[\d.]+ to [\d.]+ over", page.get_attribute("#chart", "aria-label"))


# -------------------------------------------------------------------------------------- base models
def test_a_base_model_goes_on_with_a_text(browser):
    with ServerProcess(DATA / "hf_bitnet_b158_large") as server, chat_page(browser, server) as page:
        assert page.is_visible("#text") and not page.is_visible("#prompt")
        store(page, max_tokens="8")
        page.fill("#text", "Once")
        page.press("#text", "Control+Enter")
        page.wait_for_selector("#take-back:enabled")
        assert page.input_value("#text").startswith("Once")
        assert len(page.input_value("#text")) > 4
        page.click("#take-back")
        assert page.input_value("#text") == "Once"
        page.click("#resume")
        page.wait_for_selector("#take-back:enabled")
        page.fill("#text", "word " * 400)
        page.click("#resume")
        page.click(".problem >> text=Drop the beginning")
        page.wait_for_selector("#take-back:enabled")
        page.reload()
        page.click("#list .open")
        until(page, "document.querySelector('#text').value.startsWith('word word')")
        import_file(page, WHOLE)
        page.click("#list >> text=/^a$/")
        page.wait_for_selector(".problem:has-text('no chat template')")
        page.click("text=Go on as a text")
        assert page.input_value("#text") == "user: u\n\nassistant: a"


def test_copy(page):
    answer_with(page, events("Some *text*.\n\n```py\nx = 1\n```\n"))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "Who goes there?")
    wait_for_replies(page)
    page.click("[aria-label='Copy message 2']")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("Some *text*.")
    page.click("[aria-label='Copy code']")
    until(page, "navigator.clipboard.readText().then(t => t === 'x = 1\\n')")
    page.evaluate("delete Navigator.prototype.clipboard")  # as on plain http
    page.evaluate("""document.oncopy = e => window.copied = String(document.activeElement.value)""")
    page.click("[aria-label='Copy message 1']")
    until(page, "window.copied === 'Who goes there?'")


def test_scroll_to_the_end(page):
    answer_with(page, events(*["line\n\n"] * 80))
    ask(page, "Who goes there?")
    wait_for_replies(page)
    assert not page.is_visible("#to-end")
    page.evaluate("document.querySelector('#log').scrollTop = 0")
    page.click("#to-end")
    page.wait_for_selector("#to-end", state="hidden")


def test_a_phone_has_the_list_in_a_drawer(browser, server):
    with chat_page(browser, server, viewport=PHONE) as page:
        answer_with(
            page, events("x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n|a|b|\n|-|-|\n|1|2|")
        )
        ask(page, "antidisestablishmentarianism" * 8)
        wait_for_replies(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('#log').scrollWidth") == 390
        page.click("#open-list")
        assert page.evaluate("document.activeElement.id") == "close-list"
        assert page.evaluate("document.querySelector('#page').inert")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "open-list"
        page.click("#open-list")
        page.click("#list .open")
        page.wait_for_selector("#sidebar", state="hidden")
        page.wait_for_selector("article.assistant")
        sizes = "[...document.querySelectorAll('button')].filter(b => b.offsetHeight)"
        assert page.evaluate(sizes + ".every(b => b.offsetHeight >= 24 && b.offsetWidth >= 24)")
