"""How prompts share a step's rows with each other, and time with the sequences that generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request

# Rows of prompts in a step that other sequences generate in: a block of the kernels.
SHARED_ROWS = 32
# Seconds that the sequences that generate get for each second of prompts, which so have 40 % of the
# time. With 1.2, streams over HTTP kept 43 to 48 % of their speed.
PREFILL_PRICE = 1.5


class PrefillBudget:
    """Gives prompts less time than the sequences that generate beside them."""

    def __init__(self) -> None:
        self._is_shared = False  # whether prompts and generating sequences share the next step
        self._plain: float | None = None  # seconds of the latest step without prompts
        self._debt = 0.0  # seconds prompts owe to the others, see PREFILL_PRICE

    def prompts_wait(self, is_shared: bool) -> bool:
        """Whether a step without prompts is due. is_shared: whether sequences generate beside."""
        self._is_shared = is_shared
        return is_shared and (self._plain is None or self._debt > 0)

    def record(self, has_prompts: bool, seconds: float) -> None:
        """Count a step of so many seconds."""
        if not has_prompts:  # what the last prompt owes is paid after its end, too
            self._plain = seconds
            self._debt -= seconds if self._is_shared else min(seconds, self._debt)
        elif not self._is_shared or self._plain is None:  # there is nobody whose time it could be
            self._debt = 0.0
        else:  # the others had what a plain step takes, prompts the rest
            others = min(self._plain, seconds)
            self._debt += PREFILL_PRICE * (seconds - others) - others


def split_fifo(prompts: Sequence[Request], n_rows: int) -> dict[Request, int]:
    """{request: how many of n_rows it gets}: all it has pending, first come, first served."""
    shares = {}
    for request in prompts:
        shares[request] = min(request.pending, n_rows)
        n_rows -= shares[request]
    return shares


def split_fair(prompts: Sequence[Request], n_rows: int) -> dict[Request, int]:
    """{request: how many of n_rows it gets}: half to the oldest, the rest shortest first.

    So a long prompt goes on, and a short one behind it need not wait for its end.
    """
    if not prompts:
        return {}
    first = prompts[0]
    shares = {first: min(first.pending, -(-n_rows // 2))}
    n_rows -= shares[first]
    for request in sorted(prompts, key=lambda r: r.pending):
        had = shares.get(request, 0)
        n = min(request.pending - had, n_rows)
        shares[request] = had + n
        n_rows -= n
    return shares
