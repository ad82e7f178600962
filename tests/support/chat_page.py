"""The chat page in headless Chromium, with replies of our own where a test needs certain ones.

Importing this skips the tests of a module where there is no playwright or no Chromium.
"""

import contextlib
import json
import re
import shutil
import time

import pytest

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser")  # the first there is
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
CHAT, TEXT = "**/v1/chat/completions", "**/v1/completions"


@contextlib.contextmanager
def chromium():
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@contextlib.contextmanager
def chat_page(browser, server, *, is_ready=True, **options):
    """The page of a server, which must run without an error, without anything that its policy
    refuses, and without a request to elsewhere. options: of the browser's context."""
    context = browser.new_context(**{"viewport": DESKTOP} | options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    problems, here = [], f"http://127.0.0.1:{server.port}/"
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if is_ours(m) else None)
    page.on(
        "request", lambda r: None if r.url.startswith((here, "blob:")) else problems.append(r.url)
    )
    page.goto(here, timeout=60_000)
    if is_ready:
        until(page, "document.querySelector('#name').textContent")
    yield page
    assert not problems
    context.close()


def is_ours(message):
    """Whether a line of the console is of a mistake, not of an answer that a test asked for."""
    return message.type == "error" and "Failed to load resource" not in message.text


def events(*pieces, reasoning="", reason="stop", prompt=10, n=None):
    """A chat's stream of these pieces of text, as the server writes it."""
    n = len(pieces) if n is None else n
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in re.findall(r"\s*\S+", reasoning)]
    deltas += [{"content": piece} for piece in pieces]
    chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    usage = {"prompt_tokens": prompt, "completion_tokens": n, "total_tokens": prompt + n,
             "prompt_tokens_details": {"cached_tokens": 4}}  # fmt: skip
    timings = {"first_token_ms": 20.5, "total_ms": 90.0, "prompt_per_second": 100.0,
               "predicted_per_second": 55.5}  # fmt: skip
    chunks.append({"choices": [], "usage": usage, "timings": timings})
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]


def answer_with(page, *bodies, url=CHAT):
    """Answer requests with these lists of events in turn, the last one for all others. The list of
    what was sent is returned, and grows."""
    sent, left = [], list(bodies)

    def fulfil(route):
        sent.append(route.request.post_data_json)
        body = left.pop(0) if len(left) > 1 else left[0]
        headers = {"content-type": "text/event-stream"}
        route.fulfill(status=200, headers=headers, body="".join(body))

    page.route(url, fulfil)
    return sent


def until(page, expression):
    """Wait until this JavaScript is true: playwright's own wait would need eval in the page."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def ask(page, text):
    """Send a message."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def wait_for_replies(page, n=1):
    """Wait until n replies are complete; their texts."""
    page.locator("article.assistant:not(.busy) .actions >> text=Regenerate").wait_for()
    until(page, f"document.querySelectorAll('article.assistant:not(.busy)').length === {n}")
    return replies(page)


def replies(page):
    return page.locator("article.assistant .body").all_inner_texts()


def titles(page):
    return page.locator("#list .open").all_inner_texts()


def store(page, **settings):
    """Settings, as they lie in the browser."""
    for name, value in settings.items():
        page.evaluate(f"localStorage.setItem('bitnet.{name}', {json.dumps(value)})")


def import_file(page, data):
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    page.set_input_files(
        "#file", {"name": "x.json", "mimeType": "application/json", "buffer": content}
    )
    page.wait_for_selector("#notice:visible")
    return page.inner_text("#notice span")


WHOLE = {
    "format": "bitnet-conversations", "version": 1,
    "conversations": [
        {"kind": "chat", "title": "a", "named": True, "messages": [
            {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
        {"kind": "text", "text": "abc", "written": [1]},
    ],
}  # fmt: skip
