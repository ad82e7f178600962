"""Responses that are kept in memory, where that is switched on: the latest within a limit of bytes.

They hold what users wrote, and whoever knows the random id of one may go on from it.
"""

from collections import OrderedDict
from typing import Any

import msgspec

from .conversation import refused
from .errors import ApiError
from .reply_protocol import Chunk
from .schema import Message


class _Kept(msgspec.Struct):
    """messages: of the conversation. output: the items of the response to them."""

    messages: list[Message]
    output: list[dict[str, Any]]


class ResponseStore:
    """limit: bytes of all that is kept; 0 keeps nothing."""

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
        field = "previous_response_id"
        data = self._kept.get(response_id)
        if data is None:
            raise self._unknown(field, response_id)
        self._kept.move_to_end(response_id)
        kept = msgspec.json.decode(data, type=_Kept)
        return kept.messages, kept.output

    def item(self, item_id: str, field: str) -> dict[str, Any]:
        """The output item with this id. ApiError that names the field."""
        data = self._kept.get(self._items.get(item_id, ""))
        if data is not None:
            for item in msgspec.json.decode(data, type=_Kept).output:
                if item["id"] == item_id:
                    return item
        raise self._unknown(field, item_id)

    def put(self, response: Chunk, messages: list[Message]) -> bool:
        """Keep a response to these messages; False if it is not kept."""
        data = msgspec.json.encode(_Kept(messages, response["output"]))
        if len(data) > self._limit:
            return False
        self._kept[response["id"]] = data
        self._items |= {item["id"]: response["id"] for item in response["output"]}
        self.nbytes += len(data)
        while self.nbytes > self._limit:
            self.drop(next(iter(self._kept)))
        return True

    def drop(self, response_id: str) -> None:
        """Forget one that is kept."""
        data = self._kept.pop(response_id)
        self.nbytes -= len(data)
        for item in msgspec.json.decode(data, type=_Kept).output:
            self._items.pop(item["id"], None)

    def _unknown(self, field: str, name: str) -> ApiError:
        if not self._limit:
            return refused(field, "no response is kept here (--response-store SIZE keeps them)")
        error = refused(field, f"{name[:80]!r} is not kept (any more)")
        return ApiError(400, error.message, param=field, code="previous_response_not_found")
