"""``truncation: auto`` of /v1/responses: the end of a conversation that fits the context."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from ..errors import ContextFull
from .schema import Message

LEADING = ("system", "developer")  # who says how to answer: that is never dropped


def fitted(
    encode: Callable[[Sequence[Message]], list[int]], messages: Sequence[Message], context: int
) -> list[int]:
    """The token ids of the messages, or of their end from a user's message on, which leaves a
    quarter of the context to the reply. ContextFull where the last turn alone is too long.

    encode: the ids of messages, or ContextFull.
    """
    room = context - context // 4
    starts = [i for i, message in enumerate(messages) if message.role == "user"]
    candidates = [0, *starts[1:]]
    found: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        kept = [m for i, m in enumerate(messages) if i >= start or m.role in LEADING]
        try:
            found[start] = encode(kept)
        except ContextFull:
            return False
        return len(found[start]) <= room

    if fits(0):
        return found[0]
    last = candidates[-1]
    at = bisect_left(candidates, True, lo=1, key=fits)
    start = candidates[at] if at < len(candidates) else last
    if start not in found:
        return encode([m for i, m in enumerate(messages) if i >= start or m.role in LEADING])
    return found[start]
