"""The replies of OpenAI's completions: a stream of chunks, and the whole answer, their fold.

Both classes follow reply_protocol. A chunk has "choices", each with what is new of one sequence.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ..generation.detokenizer import TokenDecoder
from ..generation.request import Completion
from ..text.reasoning import ReasoningSplitter
from ..text.tool_calls import CallReader
from .errors import ApiError
from .reply_protocol import Chunk, Prompt
from .tools import Calls
from .worker import Event, Generation

Spell = Callable[[int], tuple[str, bytes]]  # token id -> its text and bytes
Logprobs = list[tuple[int, float]]  # [(token id, log of its probability)] at one position


class ChatChunks:
    """The reply of /v1/chat/completions.

    has_logprobs: whether they were asked for. reader: what reads the calls of tools of one choice,
    None where a text is none.
    """

    chunk_object, whole_object, prefix = "chat.completion.chunk", "chat.completion", "chatcmpl-"
    closes = False
    end = b"data: [DONE]\n\n"

    def __init__(
        self,
        model_name: str,
        spell: Spell,
        has_logprobs: bool,
        reader: Callable[[], CallReader] | None = None,
    ) -> None:
        self._spell, self._has_logprobs, self._reader = spell, has_logprobs, reader
        self._calls: dict[int, Calls] = {}  # {choice: Calls}
        self._beginning = ""  # text in front of every reply
        self._prompts: Sequence[Prompt] = ()  # of each choice, where it is repeated or scored
        self._splitters: dict[int, ReasoningSplitter] | None = None  # {choice: its splitter}
        self._begins_inside = False
        self.n_prompt = 0  # tokens, once they are known
        self.head: Chunk = {
            "id": self.prefix + secrets.token_hex(12),
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": model_name,
        }

    def split_reasoning(self, begins_inside: bool) -> None:
        """Before the first event: what replies think is no content. See ReasoningSplitter."""
        self._splitters, self._begins_inside = {}, begins_inside

    def begin_with(self, text: str) -> None:
        """Before the first event: a text that every reply repeats first."""
        self._beginning = text

    def prompts(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    def opening(self, n: int) -> Iterable[Chunk]:
        """A chunk for each sequence, which says who speaks."""
        for index in range(n):
            delta = {"role": "assistant", "content": self._beginning}
            yield self._chunk({"index": index, "delta": delta, "finish_reason": None})

    def chunks(self, event: Event) -> Iterator[Chunk]:
        """The chunks of one event, none while it is unknown what a text is: see Calls."""
        reason, text = finish_reason(event.completion), event.text
        deltas: list[Chunk] = []
        if self._splitters is not None:
            new = ReasoningSplitter(self._begins_inside)
            splitter = self._splitters.setdefault(event.index, new)
            reasoning, text = splitter.push(text, reason is not None)
            if reasoning:
                deltas.append({"reasoning_content": reasoning})
        if self._reader is not None:
            calls = self._calls.setdefault(event.index, Calls(self._reader()))
            deltas += calls.push(text, reason is not None)
            if reason == "stop" and calls.are_whole:
                reason = "tool_calls"
        elif text or (event.logprobs and not deltas):
            deltas.append({"content": text})
        if not deltas and reason is None and not event.logprobs:
            return  # not known yet what it will be
        *first, last = deltas or [{}]
        for delta in first:
            choice = {"index": event.index, "delta": delta, "finish_reason": None}
            yield self._chunk(choice)
        choice = {"index": event.index, "delta": last, "finish_reason": reason}
        yield self._chunk(choice | self._logprobs(event))

    def closing(self, usage: Chunk) -> Chunk:
        """The chunk behind all text, with what was used."""
        return self._chunk() | usage

    def line(self, chunk: Chunk) -> bytes:
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def failure(self, error: ApiError) -> bytes:
        return self.line(error.body())

    def _chunk(self, *choices: Chunk) -> Chunk:
        return self.head | {"choices": list(choices)}

    def _logprobs(self, event: Event) -> Chunk:
        if not self._has_logprobs:
            return {}
        entries = text_logprobs(event)
        return {"logprobs": {"content": [self._entry(e) for e in entries]} if entries else None}

    def _entry(self, entry: Logprobs) -> Chunk:
        own, *best = (self._token(*pair) for pair in entry)
        return own | {"top_logprobs": best}

    def _token(self, token_id: int, logprob: float) -> Chunk:
        text, data = self._spell(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    def fold(self, chunks: Sequence[Chunk]) -> Chunk:
        """The whole answer from all chunks."""
        choices: dict[int, Chunk] = {}
        rest: Chunk = {}
        for chunk in chunks:
            for news in chunk["choices"]:
                self._add(choices.setdefault(news["index"], {}), news)
            rest |= {key: chunk[key] for key in ("usage", "timings") if key in chunk}
        head = self.head | {"object": self.whole_object}
        head |= {"choices": [choices[index] for index in sorted(choices)]}
        return self._with_prompts(head) | rest

    def _with_prompts(self, whole: Chunk) -> Chunk:
        """The answer with vLLM's prompt_logprobs, if they were asked for."""
        if not self._prompts or self._prompts[0].scores is None:
            return whole
        return whole | {"prompt_logprobs": self._prompt_logprobs(self._prompts[0])}

    def _prompt_logprobs(self, prompt: Prompt) -> list[Chunk | None]:
        """{id: about it} of each token and the likeliest in its place; None of the first."""
        listed: list[Chunk | None] = [None]
        for score in prompt.scores or ():
            (own, logprob), *best = score.logprobs
            entries = {token_id: (i, lp) for i, (token_id, lp) in enumerate(best, 1)}
            entries.setdefault(own, (score.rank, logprob))
            listed.append(
                {
                    str(token_id): {
                        "logprob": lp,
                        "rank": rank,
                        "decoded_token": self._spell(token_id)[0],
                    }
                    for token_id, (rank, lp) in entries.items()
                }
            )
        return listed

    @staticmethod
    def _add(choice: Chunk, news: Chunk) -> None:
        """Add what a chunk has of one choice to the whole choice."""
        message = {"role": "assistant", "content": "", "refusal": None}
        choice.setdefault("index", news["index"])
        message = choice.setdefault("message", message)
        message["content"] = (message["content"] or "") + news["delta"].get("content", "")
        if thought := news["delta"].get("reasoning_content"):
            message["reasoning_content"] = message.get("reasoning_content", "") + thought
        for call in news["delta"].get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if "id" in call:
                calls.append({key: call[key] for key in ("id", "type", "function")})
            else:
                whole = calls[call["index"]]
                arguments = whole["function"]["arguments"] + call["function"]["arguments"]
                whole["function"] = whole["function"] | {"arguments": arguments}
        choice.setdefault("logprobs", None)
        if news.get("logprobs"):
            choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
            choice["logprobs"]["content"] += news["logprobs"]["content"]
        choice["finish_reason"] = news["finish_reason"]
        if message.get("tool_calls") and not message["content"]:
            message["content"] = None


class TextChunks(ChatChunks):
    """The reply of /v1/completions."""

    chunk_object = whole_object = "text_completion"
    prefix = "cmpl-"

    def __init__(
        self,
        model_name: str,
        spell: Spell,
        has_logprobs: bool,
        decoder: Callable[[], TokenDecoder],
        echoes: bool = False,
    ) -> None:
        """decoder: makes what turns the tokens of one choice into text. echoes: whether a choice
        begins with its prompt, and its logprobs with those of the prompt."""
        super().__init__(model_name, spell, has_logprobs)
        self._decoder, self._echoes = decoder, echoes
        self._decoders: dict[int, TokenDecoder] = {}  # {choice: its decoder}
        self._offsets: dict[int, int] = {}  # {choice: characters of its text so far}

    def opening(self, n: int) -> Iterable[Chunk]:
        """The prompt of each sequence, where it is to be repeated."""
        if not self._echoes:
            return
        for index, prompt in enumerate(self._prompts):
            entries: list[Any] = []
            if self._has_logprobs and prompt.scores is not None:
                entries = [[(prompt.ids[0], None)], *(score.logprobs for score in prompt.scores)]
            choice = {"index": index, "text": prompt.text, "finish_reason": None}
            yield self._chunk(choice | {"logprobs": None} | self._columns(index, entries))

    def _with_prompts(self, whole: Chunk) -> Chunk:
        """As vLLM has it: in each choice. Of an echo the logprobs are the prompt's already."""
        if self._echoes or not self._prompts:
            return whole
        for choice, prompt in zip(whole["choices"], self._prompts, strict=True):
            choice["prompt_logprobs"] = self._prompt_logprobs(prompt)
        return whole

    def chunks(self, event: Event) -> Iterator[Chunk]:
        reason = finish_reason(event.completion)
        choice = {"index": event.index, "text": event.text, "finish_reason": reason}
        yield self._chunk(choice | {"logprobs": None} | self._logprobs(event))

    def _logprobs(self, event: Event) -> Chunk:
        # Who asks for the prompt's as well counts tokens: then the end token is one.
        return self._columns(event.index, event.logprobs if self._echoes else text_logprobs(event))

    def _columns(self, index: int, entries: Sequence[Any]) -> Chunk:
        if not (self._has_logprobs and entries):
            return {}
        lists: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for own, *best in entries:
            names = self._names([own[0], *(token_id for token_id, _ in best)])
            top = {names[token_id]: logprob for token_id, logprob in best}
            values = (names[own[0]], own[1], top or None, self._offset(index, own[0]))
            for column, value in zip(lists.values(), values, strict=True):
                column.append(value)
        return {"logprobs": lists}

    def _offset(self, index: int, token_id: int) -> int:
        """Where in the choice's text the next token begins: a part of a character has none."""
        decoder = self._decoders.setdefault(index, self._decoder())
        at = self._offsets.get(index, 0)
        self._offsets[index] = at + len(decoder.push(token_id))
        return at

    def _names(self, token_ids: Iterable[int]) -> dict[int, str]:
        """{id: name}, no two alike: a token's text, or as OpenAI writes what is no text, its bytes.

        Two tokens can have one text, as "A" and the byte 0x41 of a SentencePiece vocabulary.
        """
        names: dict[int, str] = {}
        for token_id in dict.fromkeys(token_ids):
            text, data = self._spell(token_id)
            as_bytes = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
            is_text = not data or text.encode() == data
            forms = (text if is_text else as_bytes, as_bytes, f"token_id:{token_id}")
            names[token_id] = next(form for form in forms if form not in names.values())
        return names

    @staticmethod
    def _add(choice: Chunk, news: Chunk) -> None:
        choice.setdefault("index", news["index"])
        choice["text"] = choice.get("text", "") + news["text"]
        choice.setdefault("logprobs", None)
        if news["logprobs"]:
            columns = choice["logprobs"] = choice["logprobs"] or {
                key: [] for key in news["logprobs"]
            }
            for key, values in news["logprobs"].items():
                columns[key] += values
        choice["finish_reason"] = news["finish_reason"]


def text_logprobs(event: Event) -> Sequence[Logprobs]:
    """The event's logprobs without the end token's, which is no text."""
    completion, entries = event.completion, event.logprobs
    ended = completion and completion.finish_reason == "stop" and completion.stop is None
    return entries[:-1] if ended else entries


def finish_reason(completion: Completion | None) -> str | None:
    """Why a sequence ended, in OpenAI's words: a full context is a "length"; None while it runs."""
    if completion is None:
        return None
    return "stop" if completion.finish_reason == "stop" else "length"


def usage(completions: Sequence[Completion], generation: Generation) -> Chunk:
    """{"usage": tokens, "timings": milliseconds, tokens a second, and what was drafted where
    anything was} of complete sequences.

    completions: of the sequences of a worker.Generation, in order.

    A prompt counts once, however many choices were made of it; the cached part of it is what was
    not read for the first of them.
    """
    prompts: dict[int, Completion] = {}  # the first of each prompt
    for index, completion in zip(generation.prompt_indices, completions, strict=True):
        prompts.setdefault(index, completion)
    n_prompt = sum(c.prompt_tokens for c in prompts.values())
    n_cached = sum(c.cached_tokens for c in prompts.values())
    if generation.are_prompts_read:
        n_cached = 0
    n_written = sum(c.completion_tokens for c in completions)
    rates = [c.generation_tps for c in completions]
    n_drafted = sum(c.drafted_tokens for c in completions)
    n_accepted = sum(c.accepted_tokens for c in completions)
    drafts = {"draft_n": n_drafted, "draft_n_accepted": n_accepted}  # llama.cpp's names
    return {
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_written,
            "total_tokens": n_prompt + n_written,
            "prompt_tokens_details": {"cached_tokens": n_cached},
        },
        "timings": {
            "first_token_ms": round(1000 * generation.first, 3),
            "total_ms": round(1000 * generation.ended, 3),
            "prompt_per_second": round(completions[0].prompt_tps, 2),
            "predicted_per_second": round(sum(rates) / len(rates), 2),
            **(drafts if n_drafted else {}),
        },
    }
