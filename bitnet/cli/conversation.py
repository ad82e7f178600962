"""A conversation with a model: its messages, the replies to them, and going back."""

import json
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import bitnet

from ..errors import FormatError
from ..formats.atomic_write import PRIVATE, atomic
from ..formats.text_files import read_json
from ..generation.sampling import draw_seed
from ..generation.sampling_fields import SAMPLING_FIELDS
from ..generation.saved_prefix import restore_prefix, save_prefix
from ..text.reasoning import ReasoningSplitter

FORM = "bitnet chat 1"  # of a saved conversation
KEPT = 0.75  # of the context that a conversation may fill once its oldest messages are dropped


class Conversation:
    """What was said so far; each reply is one generation of the model.

    The model's prefix cache holds the keys and values of what was said, so that a turn reads only
    what is new. keywords: of Model.generate; the seed, drawn here if it is not among them, is that
    of every reply. With the model's template each line is a message; without one the lines and
    replies are one text that goes on. values: for the template, which also decides what of earlier
    turns' reasoning is read again. new_splitter: makes what splits the reply to a prompt.
    completion: of the latest reply, None if it was interrupted. splitter: of that reply. n_dropped:
    oldest messages that the model does not see any more, for want of room.
    """

    def __init__(
        self,
        model: bitnet.Model,
        keywords: dict[str, Any],
        system: str | None = None,
        values: Mapping[str, Any] | None = None,
        new_splitter: Callable[[list[int]], ReasoningSplitter | None] = lambda ids: None,
    ) -> None:
        self.model, self.values, self._new_splitter = model, values, new_splitter
        self.splitter: ReasoningSplitter | None = None
        self.keywords = {"seed": draw_seed()} | keywords
        self.system = [{"role": "system", "content": system}] if system is not None else []
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages = list(self.system)
        self.completion: bitnet.Completion | None = None
        self.n_dropped = 0
        self._tokens: list[int] = []

    @property
    def is_chat(self) -> bool:
        """Whether lines are messages; else they and the replies are one text."""
        return self.model.tokenizer.chat_template is not None

    def reply(self, line: str) -> Generator[str, None, None]:
        """Yield the reply to ``line`` as it comes. What came before an interrupt is remembered.

        Where the context has no room the oldest messages are dropped. ContextFull: the line alone
        has no room, and is forgotten.
        """
        said: list[str] = []
        self.completion = None
        dropped = self.n_dropped
        try:
            prompt = self._prompt(line)
        except bitnet.ContextFull:
            self.n_dropped = dropped  # a line that is refused forgets nothing
            raise
        self.splitter = self._new_splitter(prompt) if self.is_chat else None
        with self.model.stream(prompt, **self.keywords) as stream:
            try:
                for delta in stream:
                    said.append(delta)
                    yield delta
            finally:
                self.completion = stream.completion
                self._tokens = prompt + (self.completion.token_ids if self.completion else [])
                if said or self.completion:
                    self.messages.append({"role": "user", "content": line})
                    self.messages.append({"role": "assistant", "content": "".join(said)})

    def undo(self) -> str | None:
        """Forget the latest line and its reply; the line, or None where nothing was said."""
        if len(self.messages) <= len(self.system):
            return None
        line = self.messages[-2]["content"]
        del self.messages[-2:]
        self.n_dropped = min(self.n_dropped, len(self.messages) - len(self.system))
        self.completion = None
        return line

    def set_system(self, text: str) -> None:
        """Another system message, or none; what was said stays."""
        said = self.messages[len(self.system) :]
        self.system = [{"role": "system", "content": text}] if text else []
        self.messages = self.system + said

    def set(self, name: str, text: str) -> None:
        """Give a number of Sampling, or max_tokens, another value. ValueError for what is none."""
        kinds: dict[str, Any] = {f.name: f.kind for f in SAMPLING_FIELDS}
        kinds["max_tokens"] = int
        if name not in kinds:
            raise ValueError(f"{name}: nothing to set ({', '.join(kinds)})")
        try:
            value = kinds[name](text)
        except ValueError:
            raise ValueError(f"{name}: {text!r} (a number)") from None
        changed = self.keywords | {name: value}
        self.model.request([0], **changed)  # which checks it
        self.keywords = changed

    def settings(self) -> dict[str, Any]:
        """What set may change, as it is; None is the model's to say."""
        settings = {
            f.name: self.keywords.get(f.name, None if f.is_models else f.default)
            for f in SAMPLING_FIELDS
        }
        return settings | {"max_tokens": self.keywords.get("max_tokens")}

    def n_tokens(self) -> int:
        """Tokens of what the model has seen and said."""
        return len(self._tokens)

    def summary(self) -> str:
        """Figures of the latest reply, one line."""
        if self.completion is None:
            return "[stopped]"
        c = self.completion
        n_used = c.prompt_tokens + c.completion_tokens - 1  # nothing was computed from the last one
        return (
            f"[{c.prompt_tokens - c.cached_tokens} tokens read at {c.prompt_tps:,.1f} a second, "
            f"{c.completion_tokens} written at {c.generation_tps:,.1f}; "
            f"{min(n_used, self.model.context)} of {self.model.context} in use]"
        )

    def save(self, path: Path) -> int:
        """Write the messages to ``path`` and keys and values beside it; how many tokens those are.

        Files are for their owner alone.
        """
        saved = {"form": FORM, "system": len(self.system), "messages": self.messages}
        saved |= {"n_dropped": self.n_dropped, "tokens": self._tokens}
        with atomic(path, PRIVATE) as file:
            file.write(json.dumps(saved, ensure_ascii=False, indent=1).encode())
        if not self._tokens:
            return 0
        fingerprint = self.model.weights.fingerprint()
        return save_prefix(self.model.scheduler, self._tokens, _states(path), fingerprint)

    def load(self, path: Path) -> int:
        """Go on with what save wrote; how many tokens need not be read again.

        FormatError for a file of another form; keys and values of another model or dtype, or none,
        are left out: 0.
        """
        saved = read_json(path)
        messages, tokens = saved.get("messages"), saved.get("tokens")
        n_system, n_dropped = saved.get("system"), saved.get("n_dropped")
        if not (
            saved.get("form") == FORM
            and isinstance(messages, list)
            and all(map(_is_message, messages))
            and isinstance(tokens, list)
            and all(type(token) is int for token in tokens)
            and n_system in (0, 1)
            and (len(messages) - n_system) % 2 == 0
            and type(n_dropped) is int
            and 0 <= n_dropped <= len(messages) - n_system
        ):
            raise FormatError(path, "form", saved.get("form"), f"{FORM}, whole, as /save writes it")
        self.reset()
        self.system, self.messages = messages[:n_system], messages
        self.n_dropped, self._tokens = n_dropped, tokens
        try:
            fingerprint = self.model.weights.fingerprint()
            return restore_prefix(self.model.scheduler, _states(path), fingerprint)
        except (OSError, FormatError, bitnet.ContextFull, bitnet.PoolExhausted):
            return 0

    def markdown(self) -> str:
        """The conversation as a document."""
        names = {"system": "System", "user": "You", "assistant": "Model"}
        parts = [f"## {names[m['role']]}\n\n{m['content'].strip()}\n" for m in self.messages]
        return "\n".join(parts)

    def _prompt(self, line: str) -> list[int]:
        """The token ids of the conversation and a line, its oldest turns dropped as is needed."""
        room, said = self.model.context, len(self.messages) - len(self.system)
        while True:
            try:
                prompt = self._encoded(line)
                if len(prompt) <= room or self.n_dropped >= said:
                    return prompt
            except bitnet.ContextFull:
                if self.n_dropped >= said:
                    raise
            room = int(KEPT * self.model.context)
            self.n_dropped += 2

    def _encoded(self, line: str) -> list[int]:
        said = self.messages[len(self.system) + self.n_dropped :]
        if self.is_chat:
            messages = [*self.system, *said, {"role": "user", "content": line}]
            return self.model.encode_chat(messages, self.values)
        contents = (m["content"] + "\n" * (m["role"] == "assistant") for m in said)
        return self.model.encode_prompt("".join(contents) + line)


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and value["role"] in ("system", "user", "assistant")
        and isinstance(value["content"], str)
    )


def _states(path: Path) -> Path:
    return path.with_name(path.name + ".kv")
