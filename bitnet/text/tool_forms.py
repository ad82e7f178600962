"""How models write calls of functions: the forms there are, and which one a chat template knows.

A template that knows tools writes them, calls and results itself, as its model was trained; a
rendering of a made-up call shows which form that is. Where none is known ours is used.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import TemplateError

PROBE = "bitnetprobe"


class ToolForm(NamedTuple):
    """What is around the calls of a reply: before the first, between two, behind the last.

    name: of the form. before: what no other reply begins with, or holds, if has_text: whether text
    may stand in front of it. between: None where a reply has one call at most. key: the name of the
    arguments in a call's JSON; None where a call is XML. is_flat: whether the template is given
    calls as {"name", "arguments"} alone, and not as OpenAI's client has them. is_templates: whether
    the template writes tools, calls and results.
    """

    name: str
    before: str
    between: str | None
    after: str
    key: str | None = "arguments"
    has_text: bool = True
    is_flat: bool = False
    is_templates: bool = True

    def head(self, name: str) -> str:
        """A call's JSON, or its XML, up to its arguments. Names need no escapes."""
        if self.key is None:
            return f"<function={name}>\n"
        return f'{{"name": "{name}", "{self.key}": '

    @property
    def mark(self) -> str:
        """What a reply with calls has, and one without has not."""
        return self.before.rstrip("[\n") or '{"name": "'


OURS = ToolForm(
    "ours", "<tool_call>", "</tool_call><tool_call>", "</tool_call>", is_templates=False
)
QWEN3 = ToolForm("qwen3", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")
FALCON = ToolForm("falcon", "<tool_call>\n[\n", ",\n", "\n]\n</tool_call>", is_flat=True)
LLAMA3 = ToolForm("llama3", "", None, "", "parameters", has_text=False)
QWEN35 = QWEN3._replace(name="qwen3.5", key=None)

# (what a rendered call looks like, the form), the first that is found
_SHOWN = (
    (re.compile(rf"<tool_call>\s*<function={PROBE}>\s*<parameter={PROBE}key>"), QWEN35),
    (re.compile(r"<tool_call>\s*\[\s*\{"), FALCON),
    (re.compile(rf'<tool_call>\s*\{{\s*"name":\s*"{PROBE}",\s*"arguments":\s*\{{'), QWEN3),
    (re.compile(rf'\{{\s*"name":\s*"{PROBE}",\s*"parameters":\s*\{{'), LLAMA3),
)
_TOOL = {
    "type": "function",
    "function": {
        "name": PROBE,
        "description": f"{PROBE}about",
        "parameters": {"type": "object", "properties": {f"{PROBE}key": {"type": "string"}}},
    },
}
_CALL = {
    "id": "call000001",
    "type": "function",
    "function": {"name": PROBE, "arguments": {f"{PROBE}key": f"{PROBE}value"}},
}


def detect(render: Callable[[Sequence[Mapping[str, Any]], Sequence[Any]], str]) -> ToolForm:
    """The form of a template. render: its text of messages and tools; TemplateError."""
    asked = [{"role": "user", "content": f"{PROBE}asked"}]
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    result = {
        "role": "tool", "content": f"{PROBE}result", "name": PROBE, "tool_call_id": _CALL["id"],
    }  # fmt: skip
    try:
        text = render([*asked, call, result], [_TOOL])
    except TemplateError:
        return OURS
    if f"{PROBE}about" not in text or f"{PROBE}result" not in text:
        return OURS
    call_text = text[: text.index(f"{PROBE}result")]
    return next((form for shown, form in _SHOWN if shown.search(call_text)), OURS)


def call_of(form: ToolForm, call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    """A call as the template of a form is given it."""
    if form.is_flat:
        return {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
