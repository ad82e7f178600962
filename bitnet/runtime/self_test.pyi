"""The known-answer test of a table of kernels: every instruction set must give the same bits."""

KNOWN_ANSWER: int

def answer(capsule: object) -> int: ...
