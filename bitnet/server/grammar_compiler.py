"""Compiling grammars with llguidance, here or, run as a program, in a process of its own.

Whether a compilation ends can be learnt by trying alone: a schema of a hundred bytes can ask for
intersections of expressions that take hours, and no limit of the library's reaches all of them. So
it is tried first where it may be killed (grammar_check.py). The program needs nothing of this
package: it has 20 MB and starts in 0.1 s.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # llguidance's unit of work: 20 ms, when a grammar is compiled
    "step_lexer_fuel": 200_000,  # the same: 14 ms, for a token
    "step_max_items": 50_000,  # items of the parser: 3 ms, for a token
    "max_items_in_row": 2000,  # of them at one place
    "max_lexer_states": 10_000,  # states: 20 MB
    "max_grammar_size": 100_000,  # symbols of its rules
    "verbose_errors": False,
}
SECONDS = 2.0  # of a compilation in a process of its own
MAX_BYTES = 256 << 20  # of memory that it may take


def compiled(tokenizer: Any, maker: str, text: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """(llguidance's matcher, what it has against the grammar, "" as a rule).

    maker, text, options: the name of a function of LLMatcher that makes a grammar, its arguments.
    """
    import llguidance

    limits = llguidance.LLParserLimits(**LIMITS)
    try:
        grammar = getattr(llguidance.LLMatcher, maker)(text, **options)
    except ValueError as error:
        return None, str(error)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    return matcher, matcher.get_error()


class _Bytes:
    """A vocabulary of the 256 bytes: what a compilation takes does not depend on the tokens."""

    bos_token_id, eos_token_id = None, 256
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """For each line of stdin, JSON of (maker, text, options), write what `compiled` says, as JSON.

    A compilation that takes longer or more memory than it may ends the process: by SIGALRM, or as
    the library does without memory, by SIGABRT.
    """
    import llguidance

    # A terminal and a service manager send these to all processes of a server; it drains first.
    # Without the server stdin ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    wrapper = llguidance.TokenizerWrapper(_Bytes())
    tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=257, eos_token=[256])
    _bound_memory()
    print(json.dumps(""), flush=True)  # it is ready
    for line in sys.stdin:
        maker, text, options = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        _, error = compiled(tokenizer, maker, text, options)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(error), flush=True)


def _bound_memory() -> None:
    import resource  # not on Windows, where this program does not run

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is on nothing, and there is no /proc
        with open("/proc/self/statm") as file:
            limit = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE") + MAX_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
