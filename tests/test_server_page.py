"""The chat page in headless Chromium, where there is one, at a real server."""

import re
import shutil

import pytest
from server_process import ServerProcess

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
KEY = "a secret of ours"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--api-key", KEY) as one:
        yield one


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 700})
    one = context.new_page()
    one.set_default_timeout(10_000)
    one.problems = []
    one.on("pageerror", lambda error: one.problems.append(str(error)))
    one.on("console", lambda m: one.problems.append(m.text) if "Content Security" in m.text else 0)
    one.goto(f"http://127.0.0.1:{server.port}/")
    one.fill("#key", KEY)  # the settings open themselves, since the key is missing
    one.fill("#seed", "1")
    one.click("text=Done")
    one.wait_for_selector("#name:has-text('bundled')")
    yield one
    assert not one.problems
    context.close()


def ask(page, text):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def replies(page):
    return page.locator("article.assistant .body").all_inner_texts()


def test_a_conversation(page):
    ask(page, "Who goes there?")
    page.wait_for_selector("text=Regenerate")
    (first,) = replies(page)
    assert first and "tokens/s" in page.inner_text("#rate")
    page.click("text=Regenerate")
    page.wait_for_selector("text=Regenerate")
    assert replies(page) == [first]  # the seed is the same
    ask(page, "<b>And</b> then?")
    page.locator("article.assistant").nth(1).locator("text=Regenerate").wait_for()
    assert page.locator("text=Regenerate").count() == 1
    assert len(replies(page)) == 2
    assert "<b>And</b> then?" in page.locator("article.user .body").all_inner_texts()
    assert re.search(r"context \d+ / 512", page.inner_text("#context"))
    assert page.is_visible("#memory")
    page.click("text=New chat")
    assert replies(page) == []


def test_stop(page):
    page.route(  # end tokens are forbidden, and there are eight of them: time to stop it
        "**/v1/chat/completions",
        lambda route: route.continue_(
            post_data=route.request.post_data_json
            | {"logit_bias": {"2046": -100, "2047": -100}, "max_tokens": 480, "n": 16}
        ),
    )
    ask(page, "Who goes there?")
    page.wait_for_selector(".busy")
    page.keyboard.press("Escape")
    page.wait_for_selector("article.assistant .note:has-text('stopped')")
    assert page.inner_text("#send") == "Send"


def test_an_error_is_shown(page):
    ask(page, "word " * 2000)
    assert "context" in page.locator("article.error .body").inner_text()
    assert replies(page) == []
    assert page.input_value("#prompt").startswith("word")
    page.fill("#prompt", "")
    ask(page, "Who goes there?")
    page.wait_for_selector("text=Regenerate")


def test_it_fits_a_phone_in_the_dark(page):
    page.click("text=Settings")
    page.select_option("#theme", "dark")
    page.click("text=Done")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark))) < 64
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    fields = "[...document.querySelectorAll('input, textarea, select')]"
    assert page.evaluate(fields + ".every(field => field.labels.length)")
