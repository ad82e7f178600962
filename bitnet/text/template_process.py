"""The processes in which templates are rendered: each may be ended by what a template does."""

import atexit
import os
from collections.abc import Mapping
from typing import Any

from ..errors import TemplateError
from ..runtime.limited_process import LimitedProcess, LimitExceeded
from . import template_renderer

SECONDS = 5.0  # of a rendering; a prompt of 2 MB takes 0.1
MAX_BYTES = 1 << 29  # of memory; a prompt of 2 MB takes 20 MB
MAX_IDLE = 4  # processes that wait for the next rendering

_idle: list[LimitedProcess] = []


class TooMuch(TemplateError):
    """A rendering took more than it may: another attempt would do so too."""


def rendered(source: str, context: Mapping[str, Any], steps: int) -> str:
    """What minijinja makes of a template. TemplateError for all that goes wrong.

    steps: the fuel that it may take. Several threads may render at a time, each in its process.
    """
    text: str = _call("render", source, context, steps)
    return text


def names(source: str) -> frozenset[str]:
    """The names that a template reads and neither it nor minijinja sets. TemplateError."""
    return frozenset(_call("names", source))


def _call(function: str, *arguments: Any) -> Any:
    """What a function of template_renderer gives for the arguments."""
    try:
        process = _idle.pop()
    except IndexError:
        process = LimitedProcess(template_renderer.__file__, SECONDS, MAX_BYTES)
    try:
        result, error = process.call(function, *arguments)
    except LimitExceeded as limit:
        raise TooMuch(f"chat template: takes {limit} to render") from None
    except OSError as error:
        reason = error.strerror or error
        message = f"no process can be started in which it is rendered ({reason})"
        raise TemplateError(f"chat template: {message}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"chat template: messages: {error}") from None
    finally:
        if len(_idle) < MAX_IDLE:
            _idle.append(process)
        else:
            process.end()
    if result is None:
        raise TemplateError(f"chat template{error}")
    return result


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().end()


# The pipes of a forked process would be those of its parent.
os.register_at_fork(after_in_child=_idle.clear)
