"""Responses in memory: within their limits, found by their ids, also while another thread reads."""

import threading

import pytest

pytest.importorskip("msgspec")

from bitnet.server import response_store
from bitnet.server.errors import ApiError
from bitnet.server.response_store import ResponseStore
from bitnet.server.schema import Message

SAID = [Message(role="user", content="Who?")]


def response(name, text="x"):
    item = {"id": f"msg_{name}", "type": "message", "content": [{"text": text}]}
    return {"id": f"resp_{name}", "output": [item]}


def is_kept(store, name):
    try:
        store.response(f"resp_{name}")
    except ApiError as error:
        assert error.status == 404
        return False
    assert store.item(f"msg_{name}", "id")["id"] == f"msg_{name}"
    return True


def test_the_number_of_responses_has_a_limit(monkeypatch):
    monkeypatch.setattr(response_store, "MAX_RESPONSES", 3)
    store = ResponseStore(1 << 20)
    for name in range(5):
        assert store.put(response(name), SAID)
        store.find("resp_1" if name in (1, 2) else None)
    assert [name for name in range(5) if is_kept(store, name)] == [1, 3, 4]
    store.response("resp_1")  # used last: others go before it
    store.put(response(5), SAID)
    assert [name for name in range(6) if is_kept(store, name)] == [1, 4, 5]


def test_bytes_have_a_limit_and_come_back():
    store = ResponseStore(2000)
    large = response("large", "x" * 2000)
    assert store.put(large, SAID) is False and large["store"] is False and store.nbytes == 0
    for name in range(50):
        assert store.put(response(name, "y" * 300), SAID)
        assert store.nbytes <= 2000
    kept = [name for name in range(50) if is_kept(store, name)]
    assert kept == list(range(50 - len(kept), 50)) and len(kept) == len(store) >= 2
    for name in kept:
        store.drop(f"resp_{name}")
    assert (store.nbytes, len(store)) == (0, 0)
    with pytest.raises(ApiError):
        store.item(f"msg_{kept[0]}", "id")
    with pytest.raises(ApiError):
        store.drop("resp_0")


def test_items_are_read_while_others_come_and_go():
    """An item_reference is looked up in the thread of prompts."""
    store, found, is_over = ResponseStore(3000), [], threading.Event()

    def read():
        while not is_over.is_set():
            for name in range(40):
                try:
                    found.append(store.item(f"msg_{name}", "id")["id"] == f"msg_{name}")
                except ApiError as error:
                    found.append(error.status == 400)
                except Exception as error:  # for the main thread to see
                    found.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        for name in range(40):
            store.put(response(name, "z" * (50 + turn)), SAID)
        for name in range(40):
            if is_kept(store, name):
                store.drop(f"resp_{name}")
        assert store.nbytes == 0
    is_over.set()
    reader.join()
    assert found and all(one is True for one in found)
