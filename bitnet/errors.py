"""Every exception that the package raises of its own; all names are public in `bitnet`."""

from .checks import format_bytes


class FormatError(ValueError):
    """A file that is damaged, contradicts itself, or is of a kind this version does not read.

    The message is always "path: field: value (limit)"; the four parts are attributes of the same
    names.
    """

    def __init__(self, path, field, value, limit):
        super().__init__(path, field, value, limit)
        self.path, self.field, self.value, self.limit = path, field, value, limit

    def __str__(self):
        return f"{self.path}: {_shown(self.field)}: {_shown(self.value)} ({self.limit})"


def _shown(value):
    """A value from an untrusted file, safe and short enough for a terminal."""
    text = value if isinstance(value, str) and value and value.isprintable() else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


class ContextFull(Exception):
    """A sequence of `length` positions has no room for `requested` more within `capacity`."""

    def __init__(self, length, requested, capacity):
        super().__init__(length, requested, capacity)
        self.length = length
        self.requested = requested
        self.capacity = capacity

    def __str__(self):
        return (
            f"no room for {self.requested} more positions after {self.length}: "
            f"the capacity is {self.capacity}"
        )


class PoolExhausted(MemoryError):
    """The pool cannot hold one more allocation; all sizes in bytes.

    requested and purpose   what was asked for
    available               of the limit, what is not in use
    largest                 the largest allocation that the limit has room for
    limit                   of the pool
    by_purpose              {purpose: bytes in use}
    os_error                the operating system's words if it refused, None if it did not
    quota                   of the purpose if that was the reason, None if it was not
    """

    def __init__(
        self, requested, purpose, available, largest, limit, by_purpose, os_error=None, quota=None
    ):
        super().__init__(requested, purpose, available, largest, limit, by_purpose, os_error, quota)
        self.requested = requested
        self.purpose = purpose
        self.available = available
        self.largest = largest
        self.limit = limit
        self.by_purpose = by_purpose
        self.os_error = os_error
        self.quota = quota

    def __str__(self):
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

    limit, needed: bytes. needs: [Need]. remedies: [({argument of load: value}, bytes needed then)],
    each of them enough. table: lines that show the needs.
    """

    def __init__(self, limit, needed, needs=(), remedies=(), table=()):
        super().__init__(limit, needed, needs, remedies, table)
        self.limit, self.needed, self.needs, self.remedies = limit, needed, needs, remedies
        self.table = table

    def __str__(self):
        lines = [
            f"memory_limit: {self.limit} bytes ({format_bytes(self.limit)}), but "
            f"{format_bytes(self.needed)} are needed"
        ]
        lines += [f"  {line}" for line in self.table]
        if self.remedies:
            lines.append("each of these would be enough:")
        for changes, nbytes in self.remedies:
            given = " and ".join(f"{name}={value!r}" for name, value in changes.items())
            lines.append(f"  {given} ({format_bytes(nbytes)})")
        return "\n".join(lines)


class Cancelled(Exception):
    """The request was cancelled, or its model closed, before it was complete."""


class TemplateError(ValueError):
    """The chat template is damaged, ran out of steps, or refuses these messages."""
