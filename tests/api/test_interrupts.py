"""An exception of a signal handler, as Ctrl-C's, wherever Python lets one in: the model goes on as
before, also while the exception and its traceback are alive."""

import dis
import functools
import sys

import pytest
from support.talker import TALKER

import bitnet
from bitnet.runtime import float_mode

PROMPT = [5, 6, 7, 8] * 5
OPTIONS = {"max_tokens": 2, "temperature": 0}
BEHIND = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")}
WHERE = ("scheduler.py", "session.py", "scoring.py", "contextlib.py")
MODE = 0x3F80 if float_mode.IEEE == 0x1F80 else 1 << 22  # to round down, or up: the caller's
FLAGS = 0x3F

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 13), reason="other places for signals")


class InterruptAt:
    """Calls a function with a KeyboardInterrupt at the n-th place where a handler may run."""

    def __init__(self, n):
        self.n_left, self._latest = n, {}

    def call(self, function):
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            function()
        finally:
            sys.settrace(before)

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.endswith(WHERE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._look

    def _look(self, frame, event, argument):
        if event == "opcode":
            latest = self._latest.pop(frame, None)
            self._latest[frame] = frame.f_lasti
            if latest is not None and self._may_come(frame, latest):
                self.n_left -= 1
                if self.n_left == 0:
                    self._latest.clear()
                    sys.settrace(None)
                    raise KeyboardInterrupt
        elif event == "return":
            self._latest.pop(frame, None)
        return self._look

    def _may_come(self, frame, latest):
        """Whether signals are looked at between these two instructions, and what is raised there
        meets the handler that it would meet here."""
        code, handlers = frame.f_code, handlers_of(frame.f_code)
        meets = handlers.get(latest) == handlers.get(frame.f_lasti)
        return code.co_code[latest] in BEHIND and meets


@functools.cache
def handlers_of(code):
    """{offset of an instruction: that of the innermost handler of exceptions}"""
    entries = dis.Bytecode(code).exception_entries
    return {at: entry.target for entry in entries for at in range(entry.start, entry.end)}


@pytest.mark.parametrize(
    "run",
    [
        lambda model, session: model.generate(PROMPT, **OPTIONS),
        lambda model, session: list(model.stream(PROMPT, **OPTIONS)),
        lambda model, session: session.feed([1, 2, 3]),
        lambda model, session: session.best([1, 2, 3]),
        lambda model, session: session.trim(4),
        lambda model, session: session.fork(),
        lambda model, session: model.loglikelihood(PROMPT, [1, 2]),
    ],
    ids=["generate", "stream", "feed", "best", "trim", "fork", "loglikelihood"],
)
def test_an_interrupt_at_any_place(run):
    n = 0
    with bitnet.load(TALKER, threads=1, context=64, prefix_cache=False) as model:
        expected = model.generate(PROMPT, **OPTIONS).text
        while True:
            session, n = model.session(), n + 1
            session.feed(PROMPT)
            interrupt, before = InterruptAt(n), float_mode.swap(MODE)
            try:
                interrupt.call(lambda session=session: run(model, session))
            except KeyboardInterrupt:
                assert float_mode.swap(before) & ~FLAGS == MODE
                assert len(session.token_ids) == session.length
                session.trim(4)
                assert session.token_ids == PROMPT[:4]
                assert model.generate(PROMPT, **OPTIONS).text == expected
            finally:
                float_mode.swap(before)
            session.close()
            if interrupt.n_left > 0:
                break
    assert n > 3
