"""Chat templates: a list of messages to the text a model was trained on. Knows no token ids.

A template comes out of a model file, so it is not trusted: minijinja gives it no Python object, no
file and a limited number of steps, and special tokens written inside a message stay text. (Steps
bound loops and strings; a list that a template doubles 40 times and prints can still stall.)
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from ..errors import TemplateError
from .special_tokens import SpecialTokens

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

# Steps (minijinja's fuel) that a template may take: so many, and more for each character of the
# messages. A step is an instruction, or about 13 characters of a string that is made. The longest
# published templates take some 10,000 steps, and a hundred for each message.
STEPS = 1_000_000
STEPS_PER_CHARACTER = 2

# minijinja calls itself for every operator of an expression and every elif of a condition, and the
# end of the stack ends the process: at 18,000 operators and 7,500 branches on Linux. Published
# templates have tags of some 300 characters, and less than 40 branches.
MAX_TAG, MAX_BRANCHES = 4096, 1000  # characters of a tag, elif of a template
_TAG = re.compile(r"\{[{%](.*?)(?:[%}]\}|\Z)", re.S)
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.S)

_MARKS = (*range(0xF0000, 0xFFFFE), *range(0xE000, 0xF900))  # private use: no text needs them


class ChatTemplate:
    """One template, compiled when it is used.

    source: its text, but for the one that BITNET_2B_4T stands in for. bos_token, eos_token: the
    texts that it may ask for.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        self.source = BITNET_2B_4T if "BITNETAssistant" in source else source
        self._texts = {"bos_token": bos_token, "eos_token": eos_token}

    def render(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, for reading; see pieces."""
        pieces = self.pieces(messages, SpecialTokens(()), add_generation_prompt)
        return "".join(piece for piece, _ in pieces)

    def pieces(
        self,
        messages: Iterable[Mapping[str, Any]],
        special: SpecialTokens,
        add_generation_prompt: bool = True,
    ) -> list[tuple[str, bool]]:
        """[(piece, is_special)] of a conversation: is_special only for tokens the template wrote.

        messages: [{"role": one of ROLES, "content": text, ...}]. special: SpecialTokens.
        ValueError for messages of another form, TemplateError for what goes wrong in the template.
        """
        messages = list(messages)
        mark = _unused_character([self.source, *_strings(messages)])
        for i, message in enumerate(messages):
            _check(f"messages[{i}]", message)
        protected = [{**_protected(m, special, mark), "role": m["role"]} for m in messages]
        text = self._run(protected, add_generation_prompt)
        return [(piece.replace(mark, ""), known) for piece, known in special.split(text)]

    @cached_property
    def _too_deep(self) -> str | None:
        """What could exhaust the library's stack, None as a rule."""
        tags = [_STRING.sub("''", tag) for tag in _TAG.findall(self.source)]
        longest = max(map(len, tags), default=0)
        if longest > MAX_TAG:
            return f"a tag of {longest} characters (at most {MAX_TAG})"
        n_branches = sum(tag.lstrip("- +").startswith("elif") for tag in tags)
        too_many = n_branches > MAX_BRANCHES
        return f"{n_branches} times elif (at most {MAX_BRANCHES})" if too_many else None

    def _run(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        import minijinja  # 5 ms, and only chats need it

        if self._too_deep:
            raise TemplateError(f"chat template: {self._too_deep}")
        environment = minijinja.Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            fuel=STEPS + STEPS_PER_CHARACTER * sum(map(len, _strings(messages))),
            debug=False,
            filters={"tojson": _to_json},
            globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
        )
        try:
            return environment.render_str(
                self.source,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **self._texts,
            )
        except minijinja.TemplateError as error:
            line = "" if error.line is None else f", line {error.line}"
            reason = error.detail or error.message
            raise TemplateError(f"chat template{line}: {error.kind}: {reason}") from None
        except TemplateError:
            raise
        except Exception as error:  # of a filter, or of text that is not Unicode
            raise TemplateError(f"chat template: {error}") from None


def check_unicode(text: str, where: str) -> None:
    """ValueError for half a surrogate pair, which JSON can carry and no text may hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ValueError(f"{where}: {half} (half a surrogate pair, not valid Unicode)") from None


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(f"chat template: {message}")


def _strftime_now(layout: Any) -> str:
    from datetime import datetime  # 5 ms, and few templates ask for the date

    return datetime.now().strftime(str(layout)[:100])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers defines it: minijinja's own escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


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


def _unused_character(texts: Iterable[str]) -> str:
    """A private-use character that none of the texts holds."""
    used = set().union(*texts)
    for code in _MARKS:
        if chr(code) not in used:
            return chr(code)
    raise ValueError("messages: every private-use character of Unicode occurs (one must be free)")
