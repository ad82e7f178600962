"""Every exception that the package raises of its own; all names are public in `bitnet`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .checks import format_bytes


class FormatError(ValueError):
    """A file that is damaged, contradicts itself, or is of a kind this version does not read.

    The message is always "path: field: value (limit)".

    path: of the file. field: what in it is at fault. value: what the file says. limit: what this
    version reads instead.
    """

    def __init__(
        self, path: str | os.PathLike[str], field: object, value: object, limit: str
    ) -> None:
        super().__init__(path, field, value, limit)
        self.path, self.field, self.value, self.limit = path, field, value, limit

    def __str__(self) -> str:
        return f"{self.path}: {_printable(self.field)}: {_printable(self.value)} ({self.limit})"


def _printable(value: object) -> str:
    """A value from an untrusted file, safe and short enough for a terminal."""
    text = value if isinstance(value, str) and value and value.isprintable() else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


class TemplateError(ValueError):
    """The chat template is damaged, ran out of steps, or refuses these messages."""


class GrammarError(ValueError):
    """A JSON schema, expression or grammar that text cannot be made to follow.

    field: the argument, or the field of a request, that it came in.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class NotFinite(ValueError):
    """Logits or an embedding are NaN or infinite: the weights are at fault."""


class ContextFull(Exception):
    """A sequence of `length` tokens has no room for `requested` more within `capacity`.

    Where it has none yet (length 0) they are a prompt. is_estimate: whether the prompt was not read
    to its end, so that it has about as many.
    """

    def __init__(
        self, length: int, requested: int, capacity: int, is_estimate: bool = False
    ) -> None:
        super().__init__(length, requested, capacity, is_estimate)
        self.length, self.requested, self.capacity = length, requested, capacity
        self.is_estimate = is_estimate

    def __str__(self) -> str:
        if self.is_estimate:
            return f"the prompt has more tokens than the context, {self.capacity}"
        if not self.length:
            return f"the prompt has {self.requested} tokens, the context {self.capacity}"
        return (
            f"no room for {self.requested} more positions after {self.length}: "
            f"the capacity is {self.capacity}"
        )


class Cancelled(Exception):
    """The request was cancelled, or its model closed, before it was complete."""


class PoolExhausted(MemoryError):
    """The pool cannot hold one more allocation. All sizes are bytes.

    requested, purpose: what was asked for. available: what is left of the limit. largest: the
    largest allocation that the limit has room for. limit: of the pool. by_purpose: {purpose: bytes
    in use}. os_error: the operating system's words where it refused, None where it did not. quota:
    of the purpose where that was the reason, None where it was not.
    """

    def __init__(
        self,
        requested: int,
        purpose: str,
        available: int,
        largest: int,
        limit: int,
        by_purpose: Mapping[str, int],
        os_error: str | None = None,
        quota: int | None = None,
    ) -> None:
        super().__init__(requested, purpose, available, largest, limit, by_purpose, os_error, quota)
        self.requested, self.purpose = requested, purpose
        self.available, self.largest, self.limit = available, largest, limit
        self.by_purpose, self.os_error, self.quota = by_purpose, os_error, quota

    def __str__(self) -> str:
        asked = f"no memory for {self.purpose!r}, which asked for {format_bytes(self.requested)}: "
        if self.quota is not None:
            in_use = format_bytes(self.by_purpose.get(self.purpose, 0))
            return f"{asked}{in_use} of its quota of {format_bytes(self.quota)} are in use"
        holders = sorted(self.by_purpose.items(), key=lambda item: -item[1])
        in_use = ", ".join(f"{name!r} {format_bytes(n)}" for name, n in holders if n) or "nothing"
        refusal = f"the operating system says {self.os_error!r}; " if self.os_error else ""
        return (
            f"{asked}{refusal}{format_bytes(self.available)} of the limit of "
            f"{format_bytes(self.limit)} are left ({format_bytes(self.largest)} in one piece); "
            f"in use: {in_use}"
        )


class MemoryLimitExceeded(MemoryError):
    """memory_limit is less than a model needs; raised before anything large is allocated.

    limit, needed: bytes. needs: what the model needs, with purpose and nbytes each. remedies:
    [({argument of load: value}, bytes needed then)], each of them enough. table: lines that show
    the needs. setter: who has set the limit, "memory_limit" or what stands for it.
    """

    def __init__(
        self,
        limit: int,
        needed: int,
        needs: Sequence[Any] = (),
        remedies: Sequence[tuple[Mapping[str, object], int]] = (),
        table: Sequence[str] = (),
        setter: str = "memory_limit",
    ) -> None:
        super().__init__(limit, needed, needs, remedies, table, setter)
        self.limit, self.needed, self.setter = limit, needed, setter
        self.needs, self.remedies, self.table = needs, remedies, table

    def __str__(self) -> str:
        lines = [
            f"{self.setter}: {self.limit} bytes ({format_bytes(self.limit)}), but "
            f"{format_bytes(self.needed)} are needed",
            *(f"  {line}" for line in self.table),
        ]
        if self.remedies:
            lines.append("each of these would be enough:")
        for changes, n_bytes in self.remedies:
            given = " and ".join(f"{name}={value!r}" for name, value in changes.items())
            lines.append(f"  {given} ({format_bytes(n_bytes)})")
        return "\n".join(lines)
