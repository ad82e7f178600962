"""How prompts share a step's rows and time with the sequences that generate, and clients slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request

# Rows of prompts in a step that other sequences generate in: a block of the kernels.
SHARED_ROWS = 32
# Seconds that the sequences that generate get for each second of prompts, which so have 40 % of the
# time. With 1.2, streams over HTTP kept 43 to 48 % of their speed.
PREFILL_PRICE = 1.5


# Tokens of a prompt that one generated token counts as, when clients share slots: as in the paper
# that ClientShares names.
GENERATED_PRICE = 2


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


class ClientShares:
    """Whose request gets the next slot, so that nobody's many keep another's few waiting.

    It is that of the client who has the fewest slots, among these of the one who was given least,
    in tokens; of one client the first that came. Where all are of one client, the order is that of
    arrival. A client who was away begins with what the least served of those present was given:
    nobody saves up. This is the virtual token counter of Sheng et al., "Fairness in Serving Large
    Language Models" (OSDI 2024), behind the number of slots.
    """

    def __init__(self) -> None:
        self._given: dict[Hashable, int] = {}  # tokens

    def next(self, waiting: Sequence[Request], running: Sequence[Request]) -> Request:
        """Which of those that wait is to run. waiting: in order of arrival, at least one."""
        slots = Counter(request.client for request in running)
        least = min(self._given.values(), default=0)
        firsts: dict[Hashable, Request] = {}  # of each client
        for request in waiting:
            firsts.setdefault(request.client, request)
        for client in firsts:
            self._given.setdefault(client, least)
        client = min(firsts, key=lambda client: (slots[client], self._given[client]))
        return firsts[client]

    def charge(self, client: Hashable, n_prompt: int = 0, n_generated: int = 0) -> None:
        """Count tokens that a client was given."""
        n = n_prompt + GENERATED_PRICE * n_generated
        self._given[client] = self._given.get(client, 0) + n

    def forget_others(self, present: Set[Hashable]) -> None:
        """Forget those who are not present, but for who was given more than the least of these."""
        counts = [n for client, n in self._given.items() if client in present]
        least = min(counts, default=None)
        self._given = {
            client: n
            for client, n in self._given.items()
            if least is not None and (client in present or n > least)
        }
