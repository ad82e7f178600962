"""The chat page in headless Chromium, where there is one, at a real server."""

import re
import shutil

import pytest
from support.server_process import ServerProcess

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
    context = browser.new_context(viewport={"width": 375, "height": 667})
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
    assert page.get_attribute("article.error", "role") == "alert"
    assert page.input_value("#prompt").startswith("word")  # to be changed and sent again
    assert page.locator("article.user").count() == 0
    assert page.evaluate("document.querySelector('#prompt').offsetHeight") > 100
    page.fill("#prompt", "")
    ask(page, "Who goes there?")
    page.wait_for_selector("text=Regenerate")
    assert page.locator("article.error").count() == 0


def test_what_a_proxy_answers_is_shown(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=502, body="<html>"))
    ask(page, "Who goes there?")
    assert "502" in page.locator("article.error .body").inner_text()


def test_system_prompt_and_settings_are_sent(page):
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if "chat" in r.url else None)
    page.click("text=Settings")
    for name, value in {"system": "Be brief.", "temperature": "0.5", "top_p": "0.9",
                        "max_tokens": "7"}.items():  # fmt: skip
        page.fill(f"#{name}", value)
    page.click("text=Done")
    ask(page, "Who goes there?")
    page.wait_for_selector("text=Regenerate")
    (body,) = sent
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    fields = ("temperature", "top_p", "max_tokens", "seed", "stream")
    assert [body[name] for name in fields] == [0.5, 0.9, 7, 1, True]
    page.reload()
    assert page.input_value("#system") == "Be brief."  # kept, on this machine only


def test_copy(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "Who goes there?")
    page.wait_for_selector("text=Regenerate")
    page.click("text=Copy")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == replies(page)[0]
    page.evaluate("delete Navigator.prototype.clipboard")  # as on plain http
    page.wait_for_selector("text=Copy >> nth=0")
    page.evaluate("""document.oncopy = e => window.copied = String(document.activeElement.value)""")
    page.click("text=/^Copy$/")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("window.copied") == replies(page)[0]


def test_all_of_it_by_keyboard(page):
    """Send, stop, go to the buttons, regenerate, begin anew; the focus is never lost."""
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.click("#prompt")  # the window may not have the browser's focus yet
    page.keyboard.type("Who goes there?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("And why?")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Regenerate")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim().slice(0, 12)"))
    assert {"Copy", "Regenerate", "New chat", "Settings", "Send"} <= set(seen)
    page.focus("text=Regenerate")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Regenerate")
    assert page.evaluate("document.activeElement.id") == "log"
    page.keyboard.press("Control+Shift+O")
    assert page.evaluate("document.activeElement.id") == "prompt" and not replies(page)
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    assert page.is_visible("#settings")
    page.keyboard.press("Escape")
    assert not page.is_visible("#settings")


CONTRAST = """(selector) => {
  const element = document.querySelector(selector), style = getComputedStyle(element);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => {
    const [r, g, b] = parse(text).map(v => v / 255).map(
      v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  let back = element;
  while (parse(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
  const under = light(getComputedStyle(back).backgroundColor);
  const ratio = text => { const [a, b] = [light(text), under].sort((x, y) => y - x);
                          return (a + .05) / (b + .05); };
  return [ratio(style.color), ratio(style.borderTopColor),
          ratio(getComputedStyle(element, "::placeholder").color)];
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(page, theme):
    """WCAG 2.2 AA: 4.5 for text, 3 for the edges of fields and buttons."""
    page.click("text=Settings")
    page.select_option("#theme", theme)
    page.click("text=Done")
    ask(page, "word " * 2000)
    page.wait_for_selector("article.error")
    texts = ["#name", "#prompt", "#new", "#send", "#status span", "article.error .body"]
    page.fill("#prompt", "")
    ask(page, "Who goes there?")
    page.wait_for_selector("text=Regenerate")
    texts = [t for t in texts if "error" not in t]
    texts += ["article.user .body", "article.user h2", "article.assistant .body", ".note span",
              "dialog label", "dialog input"]  # fmt: skip
    found = {selector: page.evaluate(CONTRAST, selector) for selector in texts}
    assert {s: r for s, (r, _, _) in found.items() if r < 4.5} == {}
    assert min(found[s][1] for s in ("#prompt", "#new", "dialog input")) >= 3
    assert min(found[s][2] for s in ("#prompt", "dialog input")) >= 4.5


def test_nothing_moves_for_those_who_ask(browser, server):
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    name = page.evaluate(
        "document.querySelector('#log').append(Object.assign(document.createElement('article'),"
        "{className: 'busy', innerHTML: '<div class=body></div>'})), "
        "getComputedStyle(document.querySelector('.busy .body'), '::after').animationName"
    )
    assert name == "none"
    context.close()


def test_it_fits_a_phone_in_the_dark(page):
    page.click("text=Settings")
    page.select_option("#theme", "dark")
    page.click("text=Done")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark))) < 64
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    ask(page, "antidisestablishmentarianism" * 5 + "\n```\n" + "x" * 100)
    page.wait_for_selector("text=Regenerate")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    sizes = "[...document.querySelectorAll('button')].filter(b => b.offsetHeight)"
    assert page.evaluate(sizes + ".every(b => b.offsetHeight >= 24 && b.offsetWidth >= 24)")
    fields = "[...document.querySelectorAll('input, textarea, select')]"
    assert page.evaluate(fields + ".every(field => field.labels.length)")
