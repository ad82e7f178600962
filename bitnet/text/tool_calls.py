"""Calls out of the text of a reply as it comes: what is content, and what the calls are."""

import json
import re
from collections.abc import Iterator, Mapping

from .tool_forms import OURS, ToolForm

_JSON_HEAD = re.compile(r'\{\s*"name":\s*"([^"\\]+)",\s*"(?:arguments|parameters)":\s*(?=\{)')
_XML_HEAD = re.compile(r"<function=([^>\n]+)>\n")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.S)
_XML_END = "</function>"

News = tuple[str, str]  # ("content", text), ("call", the name of the next), ("arguments", JSON)


class CallReader:
    """Reads one reply. The news do not depend on how the text is cut into pieces.

    form: of its calls. texts: {function: names of the parameters that are written as they are, and
    not as JSON}, of the XML form.

    n_calls: that have begun. are_whole: whether there are some and the last one has all of its
    arguments.
    """

    def __init__(
        self, form: ToolForm = OURS, texts: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        self._form, self._texts = form, texts or {}
        self._held = ""  # text that is in no news yet
        self._calls = False  # whether the calls have begun
        self._begun = False  # whether there is any content yet
        self.n_calls = 0
        self._depth = 0  # open braces of the arguments being read, or 1 in XML; 0: outside
        self._in_string = self._escaped = False
        self._name = ""
        self._n_parameters = 0

    @property
    def are_whole(self) -> bool:
        return self.n_calls > 0 and not self._depth

    def push(self, text: str, is_last: bool) -> Iterator[News]:
        """Yield the news of more text. is_last: none follows."""
        self._held += text
        if not self._calls:
            yield from self._content(is_last)
        if self._calls:
            yield from self._xml() if self._form.key is None else self._json()

    def _content(self, is_last: bool) -> Iterator[News]:
        """What stands in front of calls; the white space before them belongs to neither."""
        mark = self._form.mark
        at = self._held.find(mark) if self._form.has_text else self._beginning(mark)
        if at >= 0:
            content, self._held, self._calls = self._held[:at].rstrip(), self._held[at:], True
        else:
            end = len(self._held) if is_last else self._n_certain(mark)
            content, self._held = self._held[:end], self._held[end:]
        if content:
            self._begun = True
            yield "content", content

    def _beginning(self, mark: str) -> int:
        return 0 if not self._begun and self._held.startswith(mark) else -1

    def _n_certain(self, mark: str) -> int:
        """How many characters are content, whatever comes."""
        held = self._held
        if not self._form.has_text:
            return 0 if not self._begun and mark.startswith(held) else len(held)
        n_mark = next((n for n in range(len(mark) - 1, 0, -1) if held.endswith(mark[:n])), 0)
        return len(held[: len(held) - n_mark].rstrip())

    # -------------------------------------------------------------------------------------- JSON
    def _json(self) -> Iterator[News]:
        while True:
            if not self._depth:
                match = _JSON_HEAD.search(self._held)  # behind the end of the call before
                if match is None:
                    return
                self._held, self._depth = self._held[match.end() + 1 :], 1  # without its brace
                yield from self._begin(match[1])
                yield "arguments", "{"
            end = self._end_of_arguments()
            arguments, self._held = self._held[:end], self._held[end:]
            if arguments:
                yield "arguments", arguments
            if self._depth:
                return

    def _begin(self, name: str) -> Iterator[News]:
        self.n_calls, self._name, self._n_parameters = self.n_calls + 1, name, 0
        yield "call", name

    def _end_of_arguments(self) -> int:
        """Where in the text the arguments end, or the text."""
        for i, character in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{}":
                self._depth += 1 if character == "{" else -1
                if not self._depth:
                    return i + 1
        return len(self._held)

    # --------------------------------------------------------------------------------------- XML
    def _xml(self) -> Iterator[News]:
        """One piece of news a parameter, which is whole then."""
        while True:
            if not self._depth:
                match = _XML_HEAD.search(self._held)
                if match is None:
                    return
                self._held, self._depth = self._held[match.end() :], 1
                yield from self._begin(match[1])
                yield "arguments", "{"
            elif self._held.startswith(_XML_END):
                self._held, self._depth = self._held[len(_XML_END) :], 0
                yield "arguments", "}"
            elif match := _PARAMETER.match(self._held):
                self._held = self._held[match.end() :]
                yield "arguments", self._parameter(match[1], match[2])
            else:
                return

    def _parameter(self, name: str, value: str) -> str:
        """A parameter as a part of a JSON object."""
        self._n_parameters += 1
        comma = ", " if self._n_parameters > 1 else ""
        if name in self._texts.get(self._name, frozenset()) or not _is_json(value):
            value = json.dumps(value, ensure_ascii=False)
        return f"{comma}{json.dumps(name, ensure_ascii=False)}: {value}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
