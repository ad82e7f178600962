"""The chat page in headless Chromium, where there is one, at a real server: chats and settings."""

import json
import re

import pytest
from support.chat_page import (
    CHAT,
    WHOLE,
    answer_with,
    ask,
    chat_page,
    chromium,
    events,
    import_file,
    replies,
    store,
    titles,
    until,
    wait_for_replies,
)  # fmt: skip
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


def button(page, text):
    return page.locator(f"#messages button:text-is('{text}')").last


# ------------------------------------------------------------------------------------------- chats
def test_a_conversation(page):
    ask(page, "Who goes there?")
    (first,) = wait_for_replies(page)
    assert first and re.search(r"\d tokens/s", page.inner_text("#rate"))
    button(page, "Regenerate").click()
    assert wait_for_replies(page) == [first]  # the seed is the same
    ask(page, "<b>And</b> then?")
    assert len(wait_for_replies(page, 2)) == 2
    assert "<b>And</b> then?" in page.locator("article.user .plain").all_inner_texts()
    assert re.search(r"\d+ / 512", page.inner_text("#context"))
    assert titles(page) == ["Who goes there?"] and page.inner_text("#title") == "Who goes there?"
    page.click("#new")
    assert replies(page) == [] and page.is_visible("#empty")
    page.reload()
    page.click("#list >> text=Who goes there?")
    assert len(wait_for_replies(page, 2)) == 2
    page.wait_for_selector("#context:visible")  # counted by the server


def test_stop_keeps_what_came(page):
    page.route(CHAT, lambda route: route.continue_(
        post_data=route.request.post_data_json | {"logit_bias": NO_END, "max_tokens": 480, "n": 16}
    ))  # fmt: skip
    ask(page, "Who goes there?")
    page.wait_for_selector(".busy .prose:not(:empty)")
    assert page.inner_text("#send") == "Stop"
    page.keyboard.press("Escape")
    page.wait_for_selector(".figures:has-text('stopped')")
    assert page.inner_text("#send") == "Send" and replies(page) != [""]
    assert button(page, "Continue").is_visible()


def test_another_conversation_meanwhile(page):
    page.route(CHAT, lambda route: route.continue_(
        post_data=route.request.post_data_json | {"logit_bias": NO_END, "max_tokens": 400}
    ))  # fmt: skip
    ask(page, "Who goes there?")
    page.wait_for_selector(".busy")
    page.click("#new")
    assert replies(page) == [] and page.inner_text("#send") == "Send"
    page.click("#list >> text=Who goes there?")
    (text,) = wait_for_replies(page)
    assert len(text) > 500
    assert page.evaluate("document.querySelectorAll('#list .writing').length") == 0


def test_edit_and_send_again(page):
    sent = answer_with(page, events("One"), events("Two"), events("Other"), events(" more"))
    ask(page, "first")
    wait_for_replies(page)
    ask(page, "second")
    wait_for_replies(page, 2)
    page.click("article.user >> nth=0 >> text=Edit")
    page.fill("article .edit", "changed")
    page.click("article.editing >> text=Send")
    page.wait_for_selector("#notice:has-text('3 later')")
    assert wait_for_replies(page) == ["Other"]
    assert sent[-1]["messages"] == [{"role": "user", "content": "changed"}]
    page.click("#notice >> text=Undo")
    assert replies(page) == ["One", "Two"]
    page.click("article.assistant >> nth=1 >> text=Edit")
    page.fill("article .edit", "Two and")
    page.click("article.editing >> text=Save and continue")
    page.wait_for_selector("article.assistant:has-text('Two and more')")
    assert sent[-1]["messages"][-1] == {"role": "assistant", "content": "Two and"}
    assert sent[-1]["continue_final_message"] is True
    page.click("article.assistant >> nth=0 >> text=Edit")
    page.fill("article .edit", "Uno")
    page.click("article.editing >> text=Save >> nth=0")
    assert replies(page) == ["Uno", "Two and more"]
    page.click("article.user >> nth=0 >> text=Edit")
    page.keyboard.press("Escape")
    assert page.locator("article.editing").count() == 0


def test_a_reply_goes_on_at_the_real_server(page):
    store(page, max_tokens="5", logit_bias="2046: -100\n2047: -100")
    ask(page, "Who goes there?")
    (first,) = wait_for_replies(page)
    button(page, "Continue").click()
    until(
        page,
        f"""document.querySelector('article.assistant .body').innerText.length
                               > {len(first)}""",
    )
    assert wait_for_replies(page)[0].startswith(first)


def test_reasoning_is_folded(page):
    sent = answer_with(page, events("Fast.", reasoning="I think of *bytes* and <b>bits</b>."))
    ask(page, "Why?")
    wait_for_replies(page)
    details = page.locator("details.reasoning")
    assert details.get_attribute("open") is None
    assert details.locator("summary").inner_text() == "Reasoning, 6 words"
    details.locator("summary").click()
    assert "<b>bits</b>" in details.inner_text() and details.locator("em").count() == 1
    ask(page, "And?")
    wait_for_replies(page, 2)
    assert sent[1]["messages"][1] == {"role": "assistant", "content": "Fast."}
    assert sent[0]["reasoning_format"] == "auto"


# ----------------------------------------------------------------------------------- conversations
def test_rename_delete_and_the_way_back(page):
    answer_with(page, events("Yes."))
    for text in ("first", "second"):
        page.click("#new")
        ask(page, text)
        wait_for_replies(page)
    assert titles(page) == ["second", "first"]
    page.click("[aria-label='Rename, export or delete “first”']")
    page.click("#rename")
    page.keyboard.type("A name of mine")
    page.keyboard.press("Enter")
    page.wait_for_selector("#list >> text=A name of mine")
    assert page.evaluate("document.activeElement.textContent") == "A name of mine"
    page.click("#list .more >> nth=0")
    page.click("#delete")
    page.wait_for_selector("#notice:has-text('Deleted')")
    assert titles(page) == ["A name of mine"] and page.is_visible("#empty")
    page.click("#notice >> text=Undo")
    until(page, "document.querySelectorAll('#list li').length === 2")
    page.reload()
    until(page, "document.querySelectorAll('#list li').length === 2")
    assert titles(page) == ["second", "A name of mine"]


def export(page):
    with page.expect_download() as download:
        page.click("#export-all")
    return json.loads(download.value.path().read_text())


def test_export_and_import(page):
    answer_with(page, events("Yes.", reasoning="Hm."))
    ask(page, "first")
    wait_for_replies(page)
    data = export(page)
    (one,) = data["conversations"]
    assert [m["role"] for m in one["messages"]] == ["user", "assistant"]
    assert one["messages"][1]["reasoning"].strip() == "Hm."
    assert import_file(page, data) == "1 conversation imported"
    assert titles(page) == ["first", "first"]  # as a new one, whatever its id
    page.click("#list .open >> nth=1")
    assert wait_for_replies(page)[0].endswith("Yes.")


def changed(path, value):
    data = json.loads(json.dumps(WHOLE))
    *folders, last = path
    at = data
    for name in folders:
        at = at[name]
    at[last] = value
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not JSON"),
        ([], "file: expected an object"),
        (changed(["format"], "other"), "format"),
        (changed(["version"], 2), "version"),
        (changed(["conversations"], {}), "conversations: expected a list"),
        (changed(["conversations", 1, "text"], 5), "conversations[1].text"),
        (changed(["conversations", 1, "written"], [9]), "conversations[1].written[0]"),
        (changed(["conversations", 0, "kind"], "x"), "conversations[0].kind"),
        (changed(["conversations", 0, "messages", 1, "role"], "system"), "messages[1].role"),
        (changed(["conversations", 0, "messages", 0, "content"], {"a": 1}), "messages[0].content"),
        (changed(["conversations", 0, "start"], -1), "start"),
        (changed(["conversations", 0, "messages"], [{}] * 5000), "at most 4096"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_import_is_checked_whole(page, data, words):
    text = import_file(page, data)
    assert text.startswith("Not imported: x.json: ") and words in text
    page.reload()
    until(page, "document.querySelector('#name').textContent")
    assert titles(page) == []


def test_a_good_import_for_comparison(page):
    assert import_file(page, WHOLE) == "2 conversations imported"
    assert sorted(titles(page)) == ["a", "abc"]


# ------------------------------------------------------------------------------------ what is wrong
def test_the_key_is_asked_for_where_it_is_needed(browser):
    with (
        ServerProcess("--api-key", KEY) as server,
        chat_page(browser, server, is_ready=False) as page,
    ):
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector(".problem:has-text('needs a key')")
        page.click("text=Enter the key")
        page.fill("#key", "a wrong one of ours")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-error:has-text('did not take')")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector("#name:has-text('bundled')")
        ask(page, "Who goes there?")
        wait_for_replies(page)
        page.evaluate("sessionStorage.clear()")  # in the middle of it: asked, and sent then
        ask(page, "And then?")
        page.fill("#key", KEY)
        page.click("text=Use it")
        assert len(wait_for_replies(page, 2)) == 2


def test_a_full_context(page):
    store(page, max_tokens="8")
    ask(page, "word " * 300)
    wait_for_replies(page)
    ask(page, "more " * 230)
    page.wait_for_selector(".problem.full")
    assert page.get_attribute(".problem.full", "role") == "alert"
    assert page.get_attribute("#context", "class") == "full"
    texts = page.locator(".problem button").all_inner_texts()
    assert texts == ["New chat with this message", "Drop the oldest messages",
                     "Always drop the oldest"]  # fmt: skip
    page.click(".problem >> text=Drop the oldest messages")
    assert len(wait_for_replies(page, 2)) == 2
    assert page.locator(".divider").count() == 1 and page.locator(".unsent").count() == 2
    page.reload()
    page.click("#list .open")
    page.wait_for_selector(".divider")
    ask(page, "again " * 300)
    page.click(".problem >> text=New chat with this message")
    assert page.input_value("#prompt").startswith("again") and replies(page) == []


def test_always_drop_the_oldest(page):
    store(page, max_tokens="8")
    ask(page, "word " * 300)
    wait_for_replies(page)
    ask(page, "more " * 250)
    page.click(".problem >> text=Always drop the oldest")
    wait_for_replies(page, 2)
    ask(page, "less " * 250)
    assert len(wait_for_replies(page, 3)) == 3  # by itself
    assert page.locator(".problem").count() == 0


def test_one_message_that_is_too_long(page):
    ask(page, "word " * 2000)
    page.click(".problem >> text=Edit the message")
    page.fill("article .edit", "word")
    page.click("article.editing >> text=Send")
    wait_for_replies(page)
    assert page.locator(".problem").count() == 0


def test_the_server_is_gone_and_comes_back(page):
    answer_with(page, events("Yes."))
    ask(page, "first")
    wait_for_replies(page)
    page.unroute(CHAT)
    for path in ("v1/**", "metrics", "health"):
        page.route(f"**/{path}", lambda route: route.abort("connectionrefused"))
    ask(page, "second")
    page.wait_for_selector(".problem.gone")
    assert page.is_visible("#gone")
    for path in ("v1/**", "metrics", "health"):
        page.unroute(f"**/{path}")
    page.wait_for_selector(".problem:has-text('The server is back')")
    assert not page.is_visible("#gone")
    page.click(".problem >> text=Try again")
    assert len(wait_for_replies(page, 2)) == 2


def test_an_answer_that_breaks_off(page):
    body = events("One", " two", " three")
    sent = answer_with(page, body[:4], events(" four"))
    ask(page, "count")
    page.wait_for_selector(".problem.cut")
    page.click(".problem >> text=Continue")
    page.wait_for_selector("article.assistant:has-text('One two three four')")
    assert sent[1]["continue_final_message"] is True


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (502, "<html>", "The server is gone"),
        (429, json.dumps({"error": {"message": "all slots", "code": "queue_full"}}), "all slots"),
        (400, json.dumps({"error": {"message": "top_k: wrong"}}), "top_k: wrong"),
        (413, "<html>", "413"),
    ],
)
def test_what_is_refused_is_shown(page, status, body, words):
    page.route(CHAT, lambda route: route.fulfill(status=status, body=body))
    ask(page, "Who goes there?")
    page.wait_for_selector(f".problem:has-text('{words}')")
    assert page.locator("article.user").count() == 1 and replies(page) == []
    page.unroute(CHAT)
    page.click(".problem >> text=Try again")
    wait_for_replies(page)


# ---------------------------------------------------------------------------------------- settings
def test_settings_are_checked_stored_and_sent(page):
    sent = answer_with(page, events("Yes."))
    page.click("#open-settings")
    values = {
        "temperature": "0,5", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "max_tokens": "7",
        "repetition_penalty": "1.1", "presence_penalty": "-1", "frequency_penalty": "0.2",
        "min_tokens": "2", "stop": "one\ntwo", "logit_bias": "5: -100\n7 = 1.5", "system": "Brief.",
    }  # fmt: skip
    for name, value in values.items():
        page.fill(f"#{name}", value)
    wrong = {"temperature": "900", "top_k": "1.5", "top_p": "x", "repetition_penalty": "0",
             "logit_bias": "five: 1", "seed": "99999999999999999999"}  # fmt: skip
    for name, value in wrong.items():
        page.fill(f"#{name}", value)
        assert page.get_attribute(f"#{name}", "aria-invalid") == "true"
        assert page.inner_text(f"#{name}-error")
    page.click("text=Done")
    assert page.is_visible("#settings")  # and where it is wrong has the focus
    assert page.evaluate("document.activeElement.id") == "temperature"
    page.keyboard.press("Escape")
    ask(page, "Who goes there?")
    wait_for_replies(page)
    assert {k: v for k, v in sent[0].items() if k in [*values, "seed"]} == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 7,
        "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 0.2,
        "min_tokens": 2, "stop": ["one", "two"], "logit_bias": {"5": -100, "7": 1.5}, "seed": 1,
    }  # fmt: skip
    assert sent[0]["messages"][0] == {"role": "system", "content": "Brief."}
    page.reload()
    page.click("#open-settings")
    assert page.input_value("#temperature") == "0,5" and page.input_value("#system") == "Brief."
    page.click("#reset")
    assert page.evaluate("localStorage.getItem('bitnet.top_k')") == ""


def test_the_real_server_takes_what_the_settings_send(page):
    values = {
        "temperature": "0.5", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "max_tokens": "7",
        "repetition_penalty": "1.1", "presence_penalty": "-1", "frequency_penalty": "0.2",
        "min_tokens": "2", "stop": "one", "logit_bias": "5: -100",
    }  # fmt: skip
    store(page, **values)
    ask(page, "Who goes there?")
    wait_for_replies(page)


def test_stored_nonsense_is_not_sent(page):
    sent = answer_with(page, events("Yes."))
    store(page, temperature="<b>9e9")
    ask(page, "Who goes there?")
    wait_for_replies(page)
    assert "temperature" not in sent[0]


# ------------------------------------------------------------------------------------------ meters
