"""Compiling grammars with llguidance, here or in a process of its own.

Whether a compilation ends can be learnt by trying alone: a schema of a hundred bytes can ask for
intersections of expressions that take hours, and no limit of the library's reaches all of them. So
it is tried first where it may be killed (grammar_check.py), so this file needs nothing of the
package.
"""

from collections.abc import Callable, Mapping
from typing import Any

ANY_GRAMMAR = "any_to_lark"  # a maker beside those of LLMatcher: of a text in Lark or GBNF
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # llguidance's unit of work: 20 ms, when a grammar is compiled
    "step_lexer_fuel": 200_000,  # the same: 14 ms, for a token
    "step_max_items": 50_000,  # items of the parser: 3 ms, for a token
    "max_items_in_row": 2000,  # of them at one place
    "max_lexer_states": 10_000,  # states: 20 MB
    "max_grammar_size": 100_000,  # symbols of its rules
    "verbose_errors": False,
}


def compiled(tokenizer: Any, maker: str, text: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """(llguidance's matcher, what it has against the grammar, "" as a rule).

    maker, text, options: the name of a function of LLMatcher that makes a grammar, or ANY_GRAMMAR,
    and its arguments.
    """
    import llguidance

    limits = llguidance.LLParserLimits(**LIMITS)
    try:
        if maker == ANY_GRAMMAR:
            from llguidance.gbnf_to_lark import any_to_lark

            maker, text = "grammar_from_lark", any_to_lark(text)
        grammar = getattr(llguidance.LLMatcher, maker)(text, **options)
    except Exception as error:  # the reader of GBNF is written in Python, and has errors of its own
        return None, str(error) or type(error).__name__
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    return matcher, matcher.get_error()


class _Bytes:
    """A vocabulary of the 256 bytes: what a compilation takes does not depend on the tokens."""

    bos_token_id, eos_token_id = None, 256
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def begin() -> Callable[[str, str, dict[str, Any]], str]:
    """For a LimitedProcess: the function that says what `compiled` has against a grammar."""
    import llguidance

    wrapper = llguidance.TokenizerWrapper(_Bytes())
    tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=257, eos_token=[256])
    return lambda maker, text, options: compiled(tokenizer, maker, text, options)[1]
