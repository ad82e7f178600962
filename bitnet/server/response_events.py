"""The reply of /v1/responses: OpenAI's typed events around one message of text (reply_protocol)."""

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .errors import ApiError
from .openai_chunks import finish_reason
from .reply_protocol import Chunk, Prompt
from .schema import ResponsesRequest
from .worker import Event


class ResponseEvents:
    """The events of one response, which repeat the settings of the request."""

    closes = True  # a stream ends with the whole response
    end = b""

    def __init__(self, body: ResponsesRequest, model_name: str) -> None:
        self._item_id = "msg_" + secrets.token_hex(12)
        self._n_events = 0
        self._text = ""
        self._reason: str | None = None
        shown_format = {"type": "text"} if body.text is None else body.text.shown()
        self._response: Chunk = {
            "id": "resp_" + secrets.token_hex(12),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": model_name,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": shown_format},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def prompts(self, prompts: Sequence[Prompt]) -> None:
        """Responses repeat no prompt."""

    def opening(self, n: int) -> Iterator[Chunk]:
        """The events before any text."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)
        yield self._item_event("response.output_item.added", item=self._item("in_progress"))
        yield self._part_event("response.content_part.added", part=self._part())

    def chunks(self, event: Event) -> Iterator[Chunk]:
        """The events of one worker.Event."""
        self._text += event.text
        if event.text:
            delta: Chunk = {"delta": event.text, "logprobs": []}
            yield self._part_event("response.output_text.delta", **delta)
        if event.completion is not None:
            self._reason = finish_reason(event.completion)
            done: Chunk = {"text": self._text, "logprobs": []}
            yield self._part_event("response.output_text.done", **done)
            yield self._part_event("response.content_part.done", part=self._part())
            yield self._item_event("response.output_item.done", item=self._item(self._status))

    def closing(self, usage: Chunk) -> Chunk:
        """The last event, with the whole response."""
        n = usage["usage"]
        response = self._response | {
            "status": self._status,
            "output": [self._item(self._status)],
            "timings": usage["timings"],
            "usage": {
                "input_tokens": n["prompt_tokens"],
                "input_tokens_details": n["prompt_tokens_details"],
                "output_tokens": n["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": n["total_tokens"],
            },
        }
        if self._status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return self._event(f"response.{self._status}", response=response)

    def fold(self, chunks: Sequence[Chunk]) -> Chunk:
        """The whole response."""
        response: Chunk = chunks[-1]["response"]
        return response

    def line(self, chunk: Chunk) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (chunk["type"].encode(), msgspec.json.encode(chunk))

    def failure(self, error: ApiError) -> bytes:
        about = {"code": error.code, "message": error.message, "param": error.param}
        return self.line(self._event("error", **about))

    # ----------------------------------------------------------------- the objects within an event
    @property
    def _status(self) -> str:
        return "completed" if self._reason == "stop" else "incomplete"

    def _event(self, kind: str, **fields: Any) -> Chunk:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1} | fields

    def _item_event(self, kind: str, **fields: Any) -> Chunk:
        return self._event(kind, output_index=0, **fields)

    def _part_event(self, kind: str, **fields: Any) -> Chunk:
        return self._item_event(kind, item_id=self._item_id, content_index=0, **fields)

    def _part(self) -> Chunk:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}

    def _item(self, status: str) -> Chunk:
        content = [] if status == "in_progress" else [self._part()]
        return {"type": "message", "id": self._item_id, "status": status, "role": "assistant",
                "content": content}  # fmt: skip
