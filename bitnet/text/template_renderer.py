"""Rendering with minijinja, in a process of its own: what a template makes there can end it.

No limit of the library's reaches lists in lists (each level takes stack wherever they are printed,
compared or handed to a filter), a namespace in itself, or a list that is doubled 40 times. So
nothing of a template is run elsewhere (chat_template.py), and this file needs nothing of the
package.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

# Methods of Python's strings that minijinja lacks or has otherwise. What they make is of the size
# of the text, so none that pads is here.
METHODS = (
    "casefold", "index", "isdecimal", "istitle", "partition", "removeprefix", "removesuffix",
    "rindex", "rpartition", "rsplit", "splitlines", "swapcase", "title",
)  # fmt: skip

MAX_INDENT = 64  # characters of tojson's for each level, and of its separators: 2 or 4 in use
MAX_JSON = 1 << 25  # characters of tojson's; an indent makes many of a value
CHARACTERS_PER_STEP = 13  # what minijinja counts as a step of a string

_WORDS = re.compile(r"\w+")


class _Refused(Exception):
    """What the template or a filter has against a value."""


def begin() -> Callable[..., Any]:
    """For a LimitedProcess: a function that calls the one of a name, `render` or `names`."""
    import minijinja  # noqa: F401  # loaded before a rendering is timed

    functions: dict[str, Callable[..., Any]] = {"render": render, "names": names}
    return lambda name, *arguments: functions[name](*arguments)


def render(source: str, context: dict[str, Any], steps: int) -> tuple[str | None, str]:
    """(the text, "") or (None, what is wrong); steps: minijinja's fuel for it."""
    import minijinja

    environment = minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        fuel=steps,
        debug=False,
        filters=_filters(steps),
        finalizer=_finalizer,
        globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
    )
    try:
        text = environment.render_str(source, **context)
        if len(text) > steps * CHARACTERS_PER_STEP:  # format takes a width without a step
            raise _Refused(f"it makes {len(text)} characters ({steps} steps)")
        return text, ""
    except minijinja.TemplateError as error:
        line = "" if error.line is None else f", line {error.line}"
        return None, f"{line}: {error.kind}: {error.detail or error.message}"
    except Exception as error:  # of a filter, or of text that is not Unicode
        return None, f": {error}"


def names(source: str) -> tuple[list[str] | None, str]:
    """(the names that a template reads and neither it nor minijinja sets, "") or (None, why)."""
    import minijinja

    environment = minijinja.Environment()
    try:
        read = environment.undeclared_variables_in_str(source)
    except minijinja.TemplateError as error:
        return None, f": {error.kind}: {error.detail or error.message}"
    return sorted(read - environment.globals.keys()), ""


def _raise_exception(message: Any) -> NoReturn:
    raise _Refused(str(message))


def _strftime_now(layout: Any) -> str:
    from datetime import datetime  # 5 ms, and few templates ask for the date

    return datetime.now().strftime(str(layout)[:100])


def _filters(steps: int) -> dict[str, Callable[..., Any]]:
    """The filters of one rendering, which may be given so many steps of text in all."""
    left = steps * CHARACTERS_PER_STEP

    def charged(function: Callable[..., Any]) -> Callable[..., Any]:
        def filter_(value: Any, *arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= _length(value)
            if left < 0:
                raise _Refused(f"engine ran out of fuel ({steps} steps)")
            return function(value, *arguments, **keywords)

        return filter_

    made = {f"str_{name}": _method_of(name) for name in METHODS}
    made |= {"tojson": _to_json, "wordcount": lambda text: len(_WORDS.findall(str(text)))}
    return {name: charged(function) for name, function in made.items()}


def _method_of(name: str) -> Callable[..., Any]:
    def call(value: Any, *arguments: Any, **keywords: Any) -> Any:
        type_ = type(value)
        if not isinstance(value, (str, list, tuple)) or not hasattr(type_, name):
            raise _Refused(f"{type_.__name__} has no method {name}")
        return getattr(value, name)(*arguments, **keywords)

    return call


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
    is_float: bool = False,
) -> str:
    """As transformers defines it: minijinja's own escapes for HTML."""
    for name, text in (("indent", indent or ""), ("separators", "".join(separators or ()))):
        n = text if isinstance(text, (int, float)) else len(text)
        if n > MAX_INDENT:
            raise _Refused(f"tojson({name}): {n} (at most {MAX_INDENT})")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    left, parts = MAX_JSON, []
    for part in encoder.iterencode(float(value) if is_float else value):
        left -= len(part)
        if left < 0:
            raise _Refused(f"tojson of more than {MAX_JSON} characters")
        parts.append(part)
    return "".join(parts)


def _finalizer(value: Any) -> Any:
    """Floats as Python prints them, everything else as minijinja does."""
    return repr(value) if isinstance(value, float) else NotImplemented


def _length(value: Any) -> int:
    """Characters of the strings in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_length(key) + _length(entry) for key, entry in value.items())
    if isinstance(value, Sequence):
        return sum(map(_length, value))
    return 1
