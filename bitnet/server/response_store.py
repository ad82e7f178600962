"""Responses that are kept in memory, where that is switched on: the latest within limits of bytes
and of their number.

They hold what users wrote, and whoever knows the random id of one may read it and go on from it.
Used by the event loop; item may also be called from another thread.
"""

from collections import OrderedDict
from typing import Any

import msgspec

from .conversation import refused
from .errors import ApiError
from .reply_protocol import Chunk
from .schema import Message

MAX_RESPONSES = 8192  # that are kept: each takes 1 KiB beside its JSON


class _Kept(msgspec.Struct):
    """messages: of the conversation. response: to them, as the client got it."""

    messages: list[Message]
    response: Chunk

    @property
    def output(self) -> list[dict[str, Any]]:
        """The items of the response."""
        items: list[dict[str, Any]] = self.response["output"]
        return items


class ResponseStore:
    """limit: bytes of JSON of all that is kept; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self._limit, self.nbytes = limit, 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()  # the one used last at the end
        self._items: dict[str, str] = {}  # {id of an item: of the response that has it}

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, response_id: str | None) -> tuple[list[Message], list[dict[str, Any]]]:
        """(messages, output items) of a response, ([], []) for None. ApiError for another."""
        if response_id is None:
            return [], []
        kept = self._get(response_id)
        if kept is None:
            raise self._unknown("previous_response_id", response_id)
        return kept.messages, kept.output

    def response(self, response_id: str) -> Chunk:
        """The response of this id. ApiError 404 for another."""
        kept = self._get(response_id)
        if kept is None:
            raise self._not_found(response_id)
        return kept.response

    def _get(self, response_id: str) -> _Kept | None:
        data = self._kept.get(response_id)
        if data is None:
            return None
        self._kept.move_to_end(response_id)
        return msgspec.json.decode(data, type=_Kept)

    def item(self, item_id: str, field: str) -> dict[str, Any]:
        """The output item with this id. ApiError that names the field."""
        data = self._kept.get(self._items.get(item_id, ""))
        if data is not None:
            for item in msgspec.json.decode(data, type=_Kept).output:
                if item["id"] == item_id:
                    return item
        raise self._unknown(field, item_id)

    def put(self, response: Chunk, messages: list[Message]) -> bool:
        """Keep a response to these messages; False if it is not kept. It says itself which."""
        response["store"] = True
        data = msgspec.json.encode(_Kept(messages, response))
        if len(data) > self._limit:
            response["store"] = False
            return False
        self._kept[response["id"]] = data
        self._items |= {item["id"]: response["id"] for item in response["output"]}
        self.nbytes += len(data)
        while self.nbytes > self._limit or len(self._kept) > MAX_RESPONSES:
            self.drop(next(iter(self._kept)))
        return True

    def drop(self, response_id: str) -> None:
        """Forget a response. ApiError 404 where it is not kept."""
        data = self._kept.pop(response_id, None)
        if data is None:
            raise self._not_found(response_id)
        self.nbytes -= len(data)
        for item in msgspec.json.decode(data, type=_Kept).output:
            self._items.pop(item["id"], None)

    def _unknown(self, field: str, name: str) -> ApiError:
        if not self._limit:
            return refused(field, "no response is kept here (--response-store SIZE keeps them)")
        error = refused(field, f"{name[:80]!r} is not kept (any more)")
        return ApiError(400, error.message, param=field, code="previous_response_not_found")

    def _not_found(self, response_id: str) -> ApiError:
        hint = "" if self._limit else " (--response-store SIZE keeps responses)"
        message = f"response_id: {response_id[:80]!r} is not kept here{hint}"
        return ApiError(404, message, param="response_id", code="response_not_found")
