"""Chat templates: a list of messages to the text a model was trained on. Knows no token ids.

A template comes out of a model file, so it is not trusted: minijinja gives it no Python object, no
file and a limited number of steps, in a process of its own with limits of time and memory, and
special tokens written inside a message stay text.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ..errors import TemplateError
from . import reasoning, template_dialect, template_process, tool_forms
from .special_tokens import SpecialTokens
from .template_process import TooMuch
from .tool_forms import ToolForm

# The template of microsoft/bitnet-b1.58-2B-4T. The official GGUF embeds another one, which writes
# "BITNETAssistant: " and never ends its turns.
BITNET_2B_4T = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)

# Roles are written into the text between special characters ('<|' + role + '|>'), so a free choice
# of role could spell any special token.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
# Names that chat_template_kwargs may not set: what is rendered, and how, is not a client's choice.
RESERVED = {
    "add_generation_prompt", "bos_token", "chat_template", "eos_token", "messages",
    "raise_exception", "strftime_now", "tokenize", "tools",
}  # fmt: skip
MAX_VALUES, MAX_VALUE = 16, 256  # of chat_template_kwargs: names, and characters of a string
_LEADING = {"system", "developer"}  # those that say how to answer

# Steps (minijinja's fuel) that a template may take: so many, and more for each character of the
# messages. A step is an instruction, or about 13 characters of a string that is made. The longest
# published templates take some 10,000 steps, and a hundred for each message.
STEPS = 1_000_000
STEPS_PER_CHARACTER = 2

MAX_TEMPLATE = 1 << 18  # characters of a template; published ones have up to 30,000

_PROBE = "bitnetprobe"  # begins words that are rendered to see what a template leaves out
_PROBES = re.compile(rf"{_PROBE}(\d+)(begin|end)")
# Characters between a message's text and the one before, as a rule. It bounds the time of a look
# for one that is not there: a conversation may be of many.
_GAP = 4096

TemplateValues = Mapping[str, bool | int | float | str]  # of chat_template_kwargs
_Render = Callable[[list[Mapping[str, Any]]], str]
_Arrange = Callable[[list[Mapping[str, Any]]], list[Mapping[str, Any]]]

_MARKS = (*range(0xF0000, 0xFFFFE), *range(0xE000, 0xF900))  # private use: no text needs them


class Marked(str):
    """A text that may spell what a template writes between messages, though it is a user's: who
    made it has left none of that in what came from elsewhere."""

    __slots__ = ()


class ChatTemplate:
    """One template, compiled when it is used.

    source: its text, but for the one that BITNET_2B_4T stands in for. bos_token, eos_token: the
    texts that it may ask for.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        self.source = BITNET_2B_4T if "BITNETAssistant" in source else source
        self._texts = {"bos_token": bos_token, "eos_token": eos_token}

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        values: TemplateValues | None = None,
    ) -> str:
        """The text of a conversation, for reading; see pieces."""
        special = SpecialTokens(())
        pieces = self.pieces(messages, special, add_generation_prompt, values=values)
        return "".join(piece for piece, _ in pieces)

    def pieces(
        self,
        messages: Iterable[Mapping[str, Any]],
        special: SpecialTokens,
        add_generation_prompt: bool = True,
        hidden: SpecialTokens | None = None,
        values: TemplateValues | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        continues: bool = False,
    ) -> list[tuple[str, bool]]:
        """[(piece, is_special)] of a conversation: is_special only for tokens the template wrote.

        messages: [{"role": one of ROLES, "content": text, ...}]. special: SpecialTokens. hidden:
        those that the assistant's text, and a Marked one, do not spell either; None for all.
        values: for names that the template reads, see check_values; special tokens in one are text.
        tools: for a template that writes them, see tool_form. continues: whether the text ends
        within the last message, an assistant's, which a reply goes on with.
        A developer is a system to templates that do not know the one. What a system says is in
        front of the user's text in templates that do not know the other, or not at its place.
        ValueError for messages of another form, TemplateError for what goes wrong in the template,
        or where a message's text is not in what it makes.
        """
        messages = list(messages)
        values = {} if values is None else values
        self.check_values(values)
        given = [self.source, *_strings(messages), *_strings(values), *_strings(tools)]
        mark, cut = _unused_characters(given, 2)
        values = _protected(values, special, mark)
        tools = _protected(tools, special, mark)
        for i, message in enumerate(messages):
            _check(f"messages[{i}]", message)
        if continues and (not messages or messages[-1]["role"] != "assistant"):
            raise ValueError("continue_final_message: the last message is no assistant's")

        def rendered(arranged: list[Mapping[str, Any]]) -> str:
            protected = []
            for message in arranged:
                is_marked = isinstance(message.get("content"), Marked)
                is_own = is_marked or message["role"] == "assistant"
                tokens = special if hidden is None or not is_own else hidden
                protected.append({**_protected(message, tokens, mark), "role": message["role"]})
            if continues:
                protected[-1]["content"] = (protected[-1]["content"] or "") + cut
            begins_reply = add_generation_prompt and not continues
            return self._run(protected, begins_reply, values, tools)

        text = self._with_all(messages, rendered, mark)
        if continues:
            text, found, _ = text.rpartition(cut)
            if not found:
                raise TemplateError("chat template: it does not show the end of the last message")
        return [(piece.replace(mark, ""), known) for piece, known in special.split(text)]

    def _with_all(self, messages: list[Mapping[str, Any]], render: _Render, mark: str) -> str:
        """The text with what all messages say, which a system's move for if they must."""
        if not self._knows_developer:
            renamed = {"developer": "system"}
            messages = [{**m, "role": renamed.get(m["role"], m["role"])} for m in messages]
        arrangements: list[_Arrange] = [list]
        roles = {message["role"] for message in messages}
        if "system" in roles and self.lacks_system:
            arrangements = [_folded]
        elif roles & _LEADING:
            arrangements = [list, _folded_behind_first, _folded]
        reason = None
        for arrange in arrangements:
            try:
                text = render(arrange(messages))
                _check_all_there(messages, text.replace(mark, ""), arrange, render)
                return text
            except TooMuch:
                raise
            except TemplateError as error:
                reason = reason or error
        assert reason is not None
        raise reason

    def check_values(self, values: TemplateValues) -> None:
        """ValueError for chat_template_kwargs that may not be set, or that no template reads."""
        field = "chat_template_kwargs"
        if not isinstance(values, Mapping):
            raise TypeError(f"{field}: {type(values).__name__} (a dict of names and values)")
        if len(values) > MAX_VALUES:
            raise ValueError(f"{field}: {len(values)} names (at most {MAX_VALUES})")
        for name, value in values.items():
            if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_VALUE:
                raise ValueError(f"{field}: {str(name)[:80]!r} (the name of a variable)")
            where = f"{field}.{name[:80]}"
            if name in RESERVED:
                raise ValueError(f"{where}: it is set by what renders the template")
            if name not in self.names:
                raise ValueError(f"{where}: the chat template does not read it")
            if isinstance(value, str):
                check_unicode(value, where)
                if len(value) > MAX_VALUE:
                    raise ValueError(f"{where}: {len(value)} characters (at most {MAX_VALUE})")
            elif not isinstance(value, bool | int | float):
                kind = type(value).__name__
                raise ValueError(f"{where}: {kind} (true, false, a number or a string)")
            elif not abs(value) < 1 << 63:  # also of NaN
                raise ValueError(f"{where}: out of range (less than 2**63)")

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that the template reads and does not set. TemplateError if it is damaged."""
        return template_process.names(self._rewritten)

    @property
    def thinks(self) -> bool:
        """Whether the model is one whose replies may begin with `<think>`."""
        return reasoning.BEGIN in self.source or "enable_thinking" in self.source

    @cached_property
    def tool_form(self) -> ToolForm:
        """How calls of functions are written: as the template does, or in our form."""
        if re.search(r"\btools\b", self.source) is None:
            return tool_forms.OURS
        return tool_forms.detect(lambda messages, tools: self._run(messages, True, {}, tools))

    @cached_property
    def _knows_developer(self) -> bool:
        return re.search(r"(['\"])developer\1", self.source) is not None

    @cached_property
    def lacks_system(self) -> bool:
        """Whether the template takes a user's message alone, but refuses or drops a system's."""
        user = {"role": "user", "content": f"{_PROBE}1"}
        system = {"role": "system", "content": f"{_PROBE}2"}
        return self._shows([user]) and not self._shows([system, user])

    def _shows(self, messages: list[dict[str, Any]]) -> bool:
        try:
            text = self._run(messages, True, {})
        except TooMuch:
            raise
        except TemplateError:
            return False
        return all(message["content"] in text for message in messages)

    @cached_property
    def _rewritten(self) -> str:
        """What minijinja is given."""
        if len(self.source) > MAX_TEMPLATE:
            limit = f"at most {MAX_TEMPLATE}"
            raise TemplateError(f"chat template: {len(self.source)} characters ({limit})")
        return template_dialect.rewritten(self.source)

    def _run(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        values: TemplateValues,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        n_characters = sum(map(len, _strings([*messages, *tools])))
        steps = STEPS + STEPS_PER_CHARACTER * n_characters
        context = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        context |= {"tools": tools} if tools else {}
        context = {**values, **self._texts, **context}
        return template_process.rendered(self._rewritten, context, steps)


def looks_like_mark(text: str) -> bool:
    """Whether a token may be one of <|user|> or [INST]; words, signs and white space are not."""
    is_bracketed = not text[:1].isalnum() and not text[-1:].isalnum() and len(text) > 2
    return is_bracketed and any(map(str.isalpha, text))


def marks_of(source: str, texts: Iterable[str]) -> list[str]:
    """Of texts that look like marks those that a template may write between messages.

    One with a role's name in it may be put together: '<|' + message['role'] + '|>'.
    """
    source = ChatTemplate(source).source
    lower = source.lower()
    return [text for text in texts if text in source or _is_put_together(text.lower(), lower)]


def _is_put_together(text: str, source: str) -> bool:
    """Whether what is around a role's name in the text is around an expression in the source."""
    for role in ROLES:
        begin, name, end = text.partition(role)
        begins = bool(name) and any(begin + sign in source for sign in ("'", '"', "{{"))
        if begins and any(sign + end in source for sign in ("'", '"', "}}")):
            return True
    return False


def check_template(name: str, text: str) -> None:
    """ValueError for what is no text of a template; name: of the argument."""
    if not isinstance(text, str):
        raise TypeError(f"{name}: {type(text).__name__} (the text of a template)")
    if not text.strip():
        raise ValueError(f"{name}: {text!r} (the text of a template)")
    if len(text) > MAX_TEMPLATE:
        raise ValueError(f"{name}: {len(text)} characters (at most {MAX_TEMPLATE})")


def check_unicode(text: str, where: str) -> None:
    """ValueError for half a surrogate pair, which JSON can carry and no text may hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ValueError(f"{where}: {half} (half a surrogate pair, not valid Unicode)") from None


def _check(where: str, message: Any) -> None:
    """ValueError if a message is malformed."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: {type(message).__name__} (a dict with role and content)")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"{where}.role: {role!r} (one of {', '.join(ROLES)})")
    if not isinstance(content, str) and not (content is None and "tool_calls" in message):
        raise ValueError(f"{where}.content: {type(content).__name__} (a string)")
    for text in _strings(message):
        check_unicode(text, where)


def _folded(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with what a system or developer says in front of what the user says next."""
    folded: list[Mapping[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        if message["role"] in _LEADING:
            waiting.append(content)
        elif message["role"] == "user" and waiting:
            folded.append({**message, "content": "\n\n".join([*waiting, content])})
            waiting = []
        else:
            folded.append(message)
    if waiting:
        last = [folded.pop()] if folded and folded[-1]["role"] == "user" else []
        content = "\n\n".join([*(m.get("content") or "" for m in last), *waiting])
        folded.append({"role": "user", "content": content})
    return folded


def _folded_behind_first(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [*messages[:1], *_folded(messages[1:])]


def _check_all_there(
    messages: list[Mapping[str, Any]], text: str, arrange: _Arrange, render: _Render
) -> None:
    """TemplateError for a message whose text is not in the prompt.

    Templates trim, escape, and cut switches and what an assistant thought. So where a text is not
    found as it is, behind the one before, words around it are looked for in another rendering; of
    an assistant's text the one behind it alone. What an assistant says beside calls may be dropped.
    """
    lost, seen = [], 0  # seen: where the message before ends
    for i, message in enumerate(messages):
        said = message.get("content")
        if said is None or (message["role"] == "assistant" and "tool_calls" in message):
            continue
        said = said.strip()
        at = text.find(said, seen, seen + _GAP + len(said))
        if at < 0:
            lost.append(i)
        else:
            seen = at + len(said)
    if not lost:
        return
    probes = list(messages)
    for i in lost:
        said = messages[i]["content"]
        framed = f"{_PROBE}{i}begin {said} {_PROBE}{i}end"
        text_type = Marked if isinstance(said, Marked) else str
        probes[i] = {**messages[i], "content": text_type(framed)}
    shown = set(_PROBES.findall(render(arrange(probes)).casefold()))
    for i in lost:
        role = messages[i]["role"]
        words = ("end",) if role == "assistant" else ("begin", "end")
        if not all((str(i), word) in shown for word in words):
            what = f"messages[{i}].content: the {role}'s message is not in the prompt"
            raise TemplateError(f"chat template: {what}")


def _protected(value: Any, special: SpecialTokens, mark: str) -> Any:
    if isinstance(value, str):
        return special.break_up(value, mark)
    if isinstance(value, Mapping):
        return {
            special.break_up_whole(str(key), mark): _protected(entry, special, mark)
            for key, entry in value.items()
        }
    if isinstance(value, Sequence):
        return [_protected(entry, special, mark) for entry in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in nested dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _strings(key)
            yield from _strings(entry)
    elif isinstance(value, Sequence):
        for entry in value:
            yield from _strings(entry)


def _unused_characters(texts: Iterable[str], n: int) -> list[str]:
    """Private-use characters that none of the texts holds."""
    used = set().union(*texts)
    free = (chr(code) for code in _MARKS if chr(code) not in used)
    found = list(itertools.islice(free, n))
    if len(found) < n:
        raise ValueError(f"messages: {len(found)} private-use characters are free ({n} needed)")
    return found
