"""The reply of /v1/messages: Anthropic's events around a chat's deltas (reply_protocol)."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ..generation.request import Completion
from .anthropic_errors import error_body
from .errors import ApiError
from .openai_chunks import ChatChunks
from .reply_protocol import Chunk, Prompt
from .worker import Event

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageEvents:
    """The events of one message. chat: the chunks of the same reply as a chat."""

    closes = True  # a stream ends with message_stop
    end = b""

    def __init__(self, chat: ChatChunks) -> None:
        self._chat = chat
        self._n_blocks = 0
        self._open: str | None = None  # the type of the block that is open
        self._completion: Completion | None = None
        self._reason = ""
        self._message: Chunk = {
            "id": "msg_" + secrets.token_hex(12),
            "type": "message",
            "role": "assistant",
            "model": chat.head["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def prompts(self, prompts: Sequence[Prompt]) -> None:
        """Messages repeat no prompt."""

    def opening(self, n: int) -> Iterator[Chunk]:
        """The message without content, once its prompt is known."""
        usage = _usage(self._chat.n_prompt, 0, 0)
        yield {"type": "message_start", "message": self._message | {"usage": usage}}

    def chunks(self, event: Event) -> Iterator[Chunk]:
        """The events of one worker.Event."""
        if event.completion is not None:
            self._completion = event.completion
        for chunk in self._chat.chunks(event):
            for choice in chunk["choices"]:
                yield from self._add(choice["delta"])
                if choice["finish_reason"] is not None:
                    self._reason = choice["finish_reason"]
                    yield from self._close()

    def _add(self, delta: Chunk) -> Iterator[Chunk]:
        if thought := delta.get("reasoning_content"):
            yield from self._into("thinking", thinking="", signature="")
            yield self._delta("thinking_delta", thinking=thought)
        if text := delta.get("content"):
            yield from self._into("text", text="")
            yield self._delta("text_delta", text=text)
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            if "id" in call:
                yield from self._close()
                tool_id = "toolu_" + call["id"].removeprefix("call_")
                yield from self._into("tool_use", id=tool_id, name=function["name"], input={})
            if arguments := function.get("arguments"):
                yield self._delta("input_json_delta", partial_json=arguments)

    def _into(self, kind: str, **fields: Any) -> Iterator[Chunk]:
        """A block of this type is open; fields: of a new one."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        block = {"type": kind} | fields
        yield {
            "type": "content_block_start",
            "index": self._n_blocks,
            "content_block": block,
        }
        self._n_blocks += 1

    def _close(self) -> Iterator[Chunk]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._delta("signature_delta", signature="")
        self._open = None
        yield {"type": "content_block_stop", "index": self._n_blocks - 1}

    def _delta(self, kind: str, **fields: Any) -> Chunk:
        delta = {"type": kind} | fields
        return {"type": "content_block_delta", "index": self._n_blocks - 1, "delta": delta}

    def closing(self, usage: Chunk) -> Chunk:
        """The event with why it ended and what was used; line writes the very last one with it."""
        n = usage["usage"]
        cached = n["prompt_tokens_details"]["cached_tokens"]
        stop = self._completion.stop if self._completion else None
        reason = "stop_sequence" if stop is not None else STOP_REASONS[self._reason]
        return {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": _usage(n["prompt_tokens"], cached, n["completion_tokens"]),
        }

    def fold(self, chunks: Sequence[Chunk]) -> Chunk:
        """The whole message."""
        blocks: list[Chunk] = []
        written: list[str] = []
        for chunk in chunks:
            if chunk["type"] == "content_block_start":
                blocks.append(dict(chunk["content_block"]))
                written = []
            elif chunk["type"] == "content_block_delta":
                written += [v for k, v in chunk["delta"].items() if k not in ("type", "signature")]
            elif chunk["type"] == "content_block_stop":
                _fill(blocks[-1], "".join(written))
        last = chunks[-1]
        whole: Chunk = last["delta"] | {"content": blocks, "usage": last["usage"]}
        return self._message | whole

    def line(self, chunk: Chunk) -> bytes:
        lines = b"event: %s\ndata: %s\n\n" % (chunk["type"].encode(), msgspec.json.encode(chunk))
        if chunk["type"] == "message_delta":
            lines += b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        return lines

    def failure(self, error: ApiError) -> bytes:
        return self.line(error_body(error))


def _fill(block: Chunk, text: str) -> None:
    """Give a block its text; arguments that were cut are no JSON, and stay empty."""
    if block["type"] != "tool_use":
        block[block["type"]] = text
        return
    try:
        block["input"] = msgspec.json.decode(text)
    except msgspec.DecodeError:
        block["input"] = {}


def _usage(n_prompt: int, n_cached: int, n_written: int) -> Chunk:
    """What was read and written; the cached part of a prompt counts apart."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_written,
    }
