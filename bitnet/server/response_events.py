"""The reply of /v1/responses: OpenAI's typed events around a chat's deltas (reply_protocol)."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from ..text.reasoning import END
from .errors import ApiError
from .openai_chunks import ChatChunks
from .reply_protocol import Chunk, Prompt
from .responses_schema import Names, ResponsesRequest
from .worker import Event


class ResponseEvents:
    """The events of one response, which repeat the settings of the request.

    chat: the chunks of the same reply as a chat. names: what its functions are to the client.
    decode: the text of token ids. keep: called with the whole response.
    """

    closes = True  # a stream ends with the whole response
    end = b""

    def __init__(
        self,
        chat: ChatChunks,
        body: ResponsesRequest,
        names: Names,
        decode: Callable[[Sequence[int]], str],
        keep: Callable[[Chunk], None],
    ) -> None:
        self._chat, self._names, self._decode, self._keep = chat, names, decode, keep
        self._n_events = 0
        self._items: list[_Item] = []  # the last one is open until the next begins
        self._reason: str | None = None
        self._token_ids: Sequence[int] = ()
        self._response: Chunk = _settings(body, str(chat.head["model"]))

    @property
    def response_id(self) -> str:
        """Under which the response is kept."""
        return str(self._response["id"])

    def prompts(self, prompts: Sequence[Prompt]) -> None:
        """Responses repeat no prompt."""

    def opening(self, n: int) -> Iterator[Chunk]:
        """The events before any text."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)

    def chunks(self, event: Event) -> Iterator[Chunk]:
        """The events of one worker.Event."""
        if event.completion is not None:
            self._token_ids = event.completion.token_ids
        for chunk in self._chat.chunks(event):
            for choice in chunk["choices"]:
                yield from self._add(choice["delta"], (choice.get("logprobs") or {}).get("content"))
                if choice["finish_reason"] is not None:
                    self._reason = choice["finish_reason"]
                    if not self._items:
                        yield from self._open(_Message())
                    yield from self._close(self.status)

    def _add(self, delta: Chunk, logprobs: list[Chunk] | None) -> Iterator[Chunk]:
        if thought := delta.get("reasoning_content"):
            yield from self._into(_Reasoning)
            yield from self._of_item(self._items[-1].push(thought))
        if text := delta.get("content"):
            yield from self._into(_Message)
            yield from self._of_item(self._items[-1].push(text, logprobs or []))
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            if "id" in call:
                yield from self._begin(self._call(call["id"], function["name"]))
            if arguments := function.get("arguments"):
                yield from self._of_item(self._items[-1].push(arguments))

    def _call(self, call_id: str, name: str) -> "_Item":
        if name in self._names.custom:
            return _CustomCall(call_id, name)
        space, own = self._names.namespaced.get(name, (None, name))
        return _Call(call_id, own, space)

    def _into(self, kind: "type[_Message | _Reasoning]") -> Iterator[Chunk]:
        """An open item of this kind is the last one."""
        if not (self._items and isinstance(self._items[-1], kind)):
            yield from self._begin(kind())

    def _begin(self, item: "_Item") -> Iterator[Chunk]:
        if self._items:
            yield from self._close("completed")
        yield from self._open(item)

    def _open(self, item: "_Item") -> Iterator[Chunk]:
        self._items.append(item)
        yield self._item_event("response.output_item.added", item=item.shown("in_progress"))
        yield from self._of_item(item.begin())

    def _close(self, status: str) -> Iterator[Chunk]:
        item = self._items[-1]
        yield from self._of_item(item.finish())
        item.status = status
        yield self._item_event("response.output_item.done", item=item.shown(status))

    def closing(self, usage: Chunk) -> Chunk:
        """The last event, with the whole response."""
        n = usage["usage"]
        response = self._response | {
            "status": self.status,
            "completed_at": int(time.time()),
            "output": [item.shown(item.status) for item in self._items],
            "timings": usage["timings"],
            "usage": {
                "input_tokens": n["prompt_tokens"],
                "input_tokens_details": n["prompt_tokens_details"],
                "output_tokens": n["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": self._n_reasoning()},
                "total_tokens": n["total_tokens"],
            },
        }
        if self.status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._keep(response)
        return self._event(f"response.{self.status}", response=response)

    def _n_reasoning(self) -> int:
        """Tokens up to the end of the reasoning, its tags included."""
        if not any(isinstance(item, _Reasoning) for item in self._items):
            return 0
        low, high = 0, len(self._token_ids)
        if END not in self._decode(self._token_ids):
            return high
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if END in self._decode(self._token_ids[:middle])
                else (middle + 1, high)
            )
        return low

    def fold(self, chunks: Sequence[Chunk]) -> Chunk:
        """The whole response."""
        response: Chunk = chunks[-1]["response"]
        return response

    def line(self, chunk: Chunk) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (chunk["type"].encode(), msgspec.json.encode(chunk))

    def failure(self, error: ApiError) -> bytes:
        """Two events: clients look for one or the other."""
        about = {"code": error.code or "server_error", "message": error.message}
        failed = self._response | {"status": "failed", "error": about}
        events = (
            self._event("error", **about, param=error.param),
            self._event("response.failed", response=failed),
        )
        return b"".join(map(self.line, events))

    # ----------------------------------------------------------------- the objects within an event
    @property
    def status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> Chunk:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1} | fields

    def _item_event(self, kind: str, **fields: Any) -> Chunk:
        return self._event(kind, output_index=len(self._items) - 1, **fields)

    def _of_item(self, events: "Iterator[tuple[str, Chunk]]") -> Iterator[Chunk]:
        for kind, fields in events:
            yield self._item_event(f"response.{kind}", item_id=self._items[-1].id, **fields)


def _settings(body: ResponsesRequest, model_name: str) -> Chunk:
    """A response before anything is said: what was asked for."""
    text = msgspec.to_builtins(body.text) if body.text else {}
    text["format"] = text.get("format") or {"type": "text"}
    reasoning = body.reasoning
    return {
        "id": "resp_" + secrets.token_hex(12),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model_name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "store": False,
        "temperature": body.temperature,
        "text": {key: value for key, value in text.items() if value is not None},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
    }


class _Item:
    """One item of the output; its methods give (kind of event, fields)."""

    type, prefix = "", ""

    def __init__(self) -> None:
        self.id = f"{self.prefix}_{secrets.token_hex(12)}"
        self.status = "in_progress"
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def begin(self) -> Iterator[tuple[str, Chunk]]:
        """What follows when it is announced."""
        return iter(())

    def push(self, text: str, logprobs: Sequence[Chunk] = ()) -> Iterator[tuple[str, Chunk]]:
        """More of it."""
        raise NotImplementedError

    def finish(self) -> Iterator[tuple[str, Chunk]]:
        """What comes before it is shown as done."""
        raise NotImplementedError

    def shown(self, status: str) -> Chunk:
        """The item as JSON."""
        return {"id": self.id, "type": self.type, "status": status} | self._fields(status)

    def _fields(self, status: str) -> Chunk:
        raise NotImplementedError


class _Message(_Item):
    type, prefix = "message", "msg"
    part_type, delta_kind = "output_text", "output_text"

    def __init__(self) -> None:
        super().__init__()
        self._logprobs: list[Chunk] = []

    def begin(self) -> Iterator[tuple[str, Chunk]]:
        yield "content_part.added", {"content_index": 0, "part": self._part()}

    def push(self, text: str, logprobs: Sequence[Chunk] = ()) -> Iterator[tuple[str, Chunk]]:
        self._pieces.append(text)
        self._logprobs += logprobs
        yield f"{self.delta_kind}.delta", {"content_index": 0, "delta": text} | self._more(logprobs)

    def finish(self) -> Iterator[tuple[str, Chunk]]:
        whole = {"content_index": 0, "text": self.text} | self._more(self._logprobs)
        yield f"{self.delta_kind}.done", whole
        yield "content_part.done", {"content_index": 0, "part": self._part()}

    def _more(self, logprobs: Sequence[Chunk]) -> Chunk:
        return {"logprobs": list(logprobs)}

    def _part(self) -> Chunk:
        annotations: Chunk = {"annotations": []}
        return (
            {"type": self.part_type, "text": self.text} | annotations | self._more(self._logprobs)
        )

    def _fields(self, status: str) -> Chunk:
        content = [] if status == "in_progress" else [self._part()]
        return {"role": "assistant", "content": content}


class _Reasoning(_Message):
    """What a model thinks, whole: there is no summary of it, and nothing is encrypted."""

    type, prefix = "reasoning", "rs"
    part_type, delta_kind = "reasoning_text", "reasoning_text"

    def _more(self, logprobs: Sequence[Chunk]) -> Chunk:
        return {}

    def _part(self) -> Chunk:
        return {"type": self.part_type, "text": self.text}

    def _fields(self, status: str) -> Chunk:
        content = [] if status == "in_progress" else [self._part()]
        return {"summary": [], "content": content, "encrypted_content": None}


class _Call(_Item):
    type, prefix = "function_call", "fc"

    def __init__(self, call_id: str, name: str, namespace: str | None = None) -> None:
        super().__init__()
        self._about: Chunk = {"call_id": call_id, "name": name}
        if namespace is not None:
            self._about["namespace"] = namespace

    def push(self, text: str, logprobs: Sequence[Chunk] = ()) -> Iterator[tuple[str, Chunk]]:
        self._pieces.append(text)
        yield "function_call_arguments.delta", {"delta": text}

    def finish(self) -> Iterator[tuple[str, Chunk]]:
        name = self._about["name"]
        yield "function_call_arguments.done", {"name": name, "arguments": self.text}

    def _fields(self, status: str) -> Chunk:
        return self._about | {"arguments": "" if status == "in_progress" else self.text}


class _CustomCall(_Call):
    """A call whose one argument is told as a text, once it is whole."""

    type, prefix = "custom_tool_call", "ctc"

    def push(self, text: str, logprobs: Sequence[Chunk] = ()) -> Iterator[tuple[str, Chunk]]:
        self._pieces.append(text)
        return iter(())

    def finish(self) -> Iterator[tuple[str, Chunk]]:
        yield "custom_tool_call_input.delta", {"delta": self._input()}
        yield "custom_tool_call_input.done", {"input": self._input()}

    def _input(self) -> str:
        try:
            return str(json.loads(self.text)["input"])
        except (ValueError, KeyError, TypeError):  # it was cut
            return self.text

    def _fields(self, status: str) -> Chunk:
        return self._about | {"input": "" if status == "in_progress" else self._input()}
