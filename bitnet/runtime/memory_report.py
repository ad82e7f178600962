"""Where the process's memory is: what its owners say they hold, and beside it what the OS counts.

Import this module last: the figures of that moment are the baseline that growth is counted from.
"""

import ctypes
import math
import os
import re
import resource
import sys
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..checks import format_bytes
from . import cpu
from .pool import Pool, PoolStats

PROC = "/proc/self"
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
# bits of a /proc/self/pagemap entry
PRESENT, OF_FILE = np.uint64(1 << 63), np.uint64(1 << 61)
_SMAPS = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)\n(?:\w+: .*\n)*?Rss: +(\d+) kB\n"
    r"Pss: +(\d+) kB\n(?:\w+: .*\n)*?Anonymous: +(\d+) kB",
    re.M,
)


class Range(NamedTuple):
    """Addresses of one mapping, the file behind it, and what the OS counts of them; bytes."""

    begin: int
    end: int
    name: str
    rss: int
    pss: int
    anonymous: int


@dataclass(frozen=True)
class Usage:
    """What the OS counts for the process; bytes, None where it does not say."""

    rss: int | None  # resident: in memory and mapped here
    anonymous: int | None  # part of rss without a file behind it: heap, pool, stacks
    file: int | None  # part of rss that is pages of files and shared memory
    pss: int | None  # rss, each page divided by the processes that map it
    peak_rss: int
    minor_faults: int
    major_faults: int  # those that had to read from disk
    ranges: tuple[Range, ...] = field(default=(), repr=False)

    def libraries(self, mappings=()):
        """Resident bytes of files other than these [(path, address, bytes)]: program, libraries.

        A mapping is several ranges where advice (huge pages) was given for a part of it.
        """
        ours = sorted((address, address + n) for _, address, n in mappings)

        def is_ours(at):
            i = bisect_right(ours, (at, math.inf)) - 1
            return i >= 0 and at < ours[i][1]

        files = [r for r in self.ranges if r.name.startswith("/") and not is_ours(r.begin)]
        return sum(r.rss - r.anonymous for r in files) if self.ranges else None


@dataclass(frozen=True)
class Entry:
    """Something with a name that takes up memory."""

    name: str
    nbytes: int  # bytes of addresses, or handed out by the pool
    resident: int | None  # bytes of them in memory; None where the OS does not say


def usage() -> Usage:
    """The Usage of this moment (3 ms, and more when gigabytes are mapped)."""
    counted = resource.getrusage(resource.RUSAGE_SELF)
    peak = counted.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    faults = counted.ru_minflt, counted.ru_majflt
    ranges = _ranges()
    if ranges:
        rss, pss, anonymous = (sum(r[i] for r in ranges) for i in (3, 4, 5))
        return Usage(rss, anonymous, rss - anonymous, pss, peak, *faults, ranges)
    try:
        with open(f"{PROC}/statm") as file:
            rss, of_files = (PAGE_BYTES * int(pages) for pages in file.read().split()[1:3])
        return Usage(rss, rss - of_files, of_files, None, peak, *faults)
    except (OSError, ValueError):
        return Usage(None, None, None, None, peak, *faults)


def _ranges():
    try:
        # paths of any bytes: a name need not be UTF-8
        with open(f"{PROC}/smaps", errors="surrogateescape") as file:
            mappings = _SMAPS.findall(file.read())
    except OSError:
        return ()
    return tuple(
        Range(int(begin, 16), int(end, 16), name, *(1024 * int(n) for n in sizes))
        for begin, end, name, *sizes in mappings
    )


def thread_stacks(ranges, known=()):
    """(name, address, bytes) of the stacks of threads that are not in `known`, a set of ids.

    The kernel tells where a thread waits, and that is on its stack; one that is computing on
    another core at this moment is not seen.
    """
    stacks = []
    for thread in sorted(threads() - set(known), key=int):
        try:
            with open(f"{PROC}/task/{thread}/syscall") as file:
                pointer = int(file.read().split()[-2], 16)
        except (OSError, ValueError, IndexError):
            continue
        stack = next((r for r in ranges if r.begin <= pointer < r.end), None)
        if stack:  # neighbours above are one range with it, below is a guard page
            used, whole = pointer - stack.begin, stack.end - stack.begin
            size = min((n for n in stack_sizes() if used < n < whole), default=whole)
            stacks.append((f"thread {thread}", stack.begin, size))
    return stacks


def stack_sizes():
    """Bytes of addresses a stack may have: what the system gives a thread, and OMP_STACKSIZE."""
    sizes = [resource.getrlimit(resource.RLIMIT_STACK)[0], cpu.omp_stack_bytes()]
    return [n for n in sizes if n is not None]


def threads():
    """The ids of the process's threads, a set of str; empty where the OS does not say."""
    try:
        return set(os.listdir(f"{PROC}/task"))
    except OSError:
        return set()


def resident_bytes(address, nbytes, *, is_file):
    """Bytes of an address range that are in memory, counted in whole pages; None if unknown.

    Of a file's mapping, pages that this process has mapped; of other memory, pages of its own
    (pages that were read but never written are the system's shared page of zeros: up to 4 KiB
    each of them may be counted). Without /proc: pages in memory, whoever brought them there.
    """
    present = _present(address, nbytes, is_file)
    return None if present is None else PAGE_BYTES * int(np.count_nonzero(present))


def _present(address, nbytes, is_file):
    """Whether each page that a range touches is in memory, bool (n_pages,); None if unknown."""
    first = address // PAGE_BYTES
    n_pages = -(-(address + nbytes) // PAGE_BYTES) - first
    try:
        with open(f"{PROC}/pagemap", "rb", buffering=0) as file:
            file.seek(8 * first)
            entries = np.frombuffer(file.read(8 * n_pages), np.uint64)
        if len(entries) == n_pages:
            expected = PRESENT | OF_FILE if is_file else PRESENT
            return entries & (PRESENT | OF_FILE) == expected
    except OSError:
        pass
    in_core = (ctypes.c_ubyte * n_pages)()
    try:
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(first * PAGE_BYTES), ctypes.c_size_t(n_pages * PAGE_BYTES), in_core
        )
    except (OSError, AttributeError):
        return None
    pages = np.frombuffer(in_core, np.uint8)
    return None if failed else pages & 1 == 1


def _pool_entries(pool):
    """(resident bytes of the pool's arenas, [Entry] of each purpose); None where unknown.

    A page that two purposes share counts for each with the bytes it has of it.
    """
    arenas = [(address, _present(address, n, is_file=False)) for address, n in pool.arenas()]
    allocations = pool.allocations()
    if any(present is None for _, present in arenas):
        sizes = {purpose: 0 for _, _, purpose in allocations}
        for _, nbytes, purpose in allocations:
            sizes[purpose] += nbytes
        return None, [Entry(name, size, None) for name, size in sizes.items() if name]
    begins, sizes = np.array([address for address, _ in arenas]), {}
    # bytes in memory before each page of an arena
    sums = [np.append(0, np.cumsum(present)) * PAGE_BYTES for _, present in arenas]
    for address, nbytes, purpose in allocations:
        i = int(np.searchsorted(begins, address, side="right")) - 1
        offset, (_, present) = address - int(begins[i]), arenas[i]

        def before(at, i=i, present=present):
            page, rest = divmod(at, PAGE_BYTES)
            return int(sums[i][page]) + (rest if rest and present[page] else 0)

        size, resident = sizes.get(purpose, (0, 0))
        sizes[purpose] = size + nbytes, resident + before(offset + nbytes) - before(offset)
    entries = [Entry(name or "free", *both) for name, both in sizes.items() if name or both[1]]
    entries.sort(key=lambda entry: (entry.name == "free", -entry.nbytes))
    return sum(int(s[-1]) for s in sums), entries


def _sum(sizes):
    """The sum, None when one of them is."""
    sizes = list(sizes)
    return None if None in sizes else sum(sizes)


def _minus(a, b):
    return None if a is None or b is None else a - b


@dataclass(frozen=True)
class MemoryReport:
    """Print it, or take as_dict(). Growth is since `baseline`, the import of bitnet."""

    files: list[Entry]  # what is mapped
    pool: PoolStats | None
    pool_resident: int | None  # bytes in memory of what the pool has reserved
    purposes: list[Entry]  # what the pool's memory is for
    stacks: list[Entry]  # stacks of threads that began since the baseline
    heap: list[Entry]  # what callers measured as they made it, without a file behind it
    libraries: int | None  # growth of what is resident of the program and its libraries
    now: Usage
    baseline: Usage = field(repr=False)
    planned: dict[str, int] = field(default_factory=dict)  # bytes by purpose, every slot full

    def growth(self, kind: str = "rss") -> int | None:
        """Growth of one figure of Usage since the baseline, in bytes; None if unknown."""
        return _minus(getattr(self.now, kind), getattr(self.baseline, kind))

    def explained(self, kind: str = "rss") -> int | None:
        """Resident bytes of the entries above: "file", "anonymous", or "rss" for both."""
        files = [entry.resident for entry in self.files] + [self.libraries]
        pool = [self.pool_resident] if self.pool else []
        anonymous = pool + [entry.resident for entry in self.stacks + self.heap]
        return _sum({"file": files, "anonymous": anonymous, "rss": files + anonymous}[kind])

    def unexplained(self, kind: str = "rss") -> int | None:
        """Growth that no entry explains; negative when what was there before has shrunk."""
        return _minus(self.growth(kind), self.explained(kind))

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain types, for JSON."""
        names = {"heap": "others", "libraries": "code"}  # in the JSON that 0.1.0 gave
        figures = {names.get(name, name): value for name, value in asdict(self).items()}
        for moment in ("now", "baseline"):
            del figures[moment]["ranges"]
        if self.pool:
            figures["pool"]["by_purpose"] = {
                name: dict(zip(("in_use", "peak", "count"), counts, strict=True))
                for name, counts in self.pool.by_purpose.items()
            }
        for figure in (self.growth, self.explained, self.unexplained):
            figures[figure.__name__] = {kind: figure(kind) for kind in ("rss", "anonymous", "file")}
        return figures

    def __str__(self) -> str:
        rows = [*self._entry_rows(), *self._process_rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the same table."""
        from html import escape  # 10 ms, for those who show one

        def line(row):
            indent = (len(row[0]) - len(row[0].lstrip())) / 2
            style = f"text-align: left; padding-left: {1 + indent}em"
            cells = "".join(
                f'<td style="text-align: right">{escape(cell)}</td>' for cell in row[1:]
            )
            return f'<tr><td style="{style}">{escape(row[0].strip())}</td>{cells}</tr>'

        rows = [*self._entry_rows(), *self._process_rows()]
        return "<table>" + "".join(map(line, rows)) + "</table>"

    def _entry_rows(self):
        """(name, planned, reserved, in use, resident) of every entry."""

        def row(name, reserved, in_use, resident, *purposes):
            planned = [self.planned[purpose] for purpose in purposes if purpose in self.planned]
            sizes = sum(planned) if planned else "", reserved, in_use, resident
            return name, *("" if size == "" else _shown(size) for size in sizes)

        yield "", "planned", "reserved", "in use", "resident"
        total = sum(entry.nbytes for entry in self.files)
        yield row("mapped files", total, "", _sum(e.resident for e in self.files), "files")
        for entry in self.files if len(self.files) > 1 else ():
            yield row(f"  {entry.name}", entry.nbytes, "", entry.resident)
        if self.pool is not None:
            names = [entry.name for entry in self.purposes]
            figures = self.pool.reserved, self.pool.in_use, self.pool_resident
            name = f"pool (limit {format_bytes(self.pool.limit)})"
            yield row(name, *figures, *names)
            for entry in self.purposes:
                used = "" if entry.name == "free" else entry.nbytes
                yield row(f"  {entry.name}", "", used, entry.resident, entry.name)
        stacks = [(entry.nbytes, entry.resident) for entry in self.stacks]
        reserved, resident = (_sum(sizes) for sizes in zip((0, 0), *stacks, strict=True))
        yield row(f"thread stacks ({len(stacks)})", reserved, "", resident, "threads")
        for entry in self.heap:
            yield row(entry.name, "", "", entry.resident, entry.name)
        yield row("libraries", "", "", self.libraries, "libraries")
        yield row("all of these", "", "", self.explained(), *self.planned)

    def _process_rows(self):
        def row(name, now, growth, show=_shown):
            return name, "", "", show(now) if now != "" else "", show(growth)

        now = self.now
        yield "process", "", "", "now", "since import"
        yield row("  resident (RSS)", now.rss, self.growth())
        yield row("    anonymous", now.anonymous, self.growth("anonymous"))
        yield row("    file-backed", now.file, self.growth("file"))
        yield row("  not explained by the parts above", "", self.unexplained())
        yield row("    anonymous", "", self.unexplained("anonymous"))
        yield row("    file-backed", "", self.unexplained("file"))
        yield row("  proportional (PSS)", now.pss, self.growth("pss"))
        yield row("  peak RSS", now.peak_rss, self.growth("peak_rss"))
        yield row("  page faults, minor", now.minor_faults, self.growth("minor_faults"), _count)
        yield row("  page faults, major", now.major_faults, self.growth("major_faults"), _count)


def _shown(n_bytes):
    return "not available" if n_bytes is None else format_bytes(n_bytes)


def _count(n):
    return f"{n:,}"


def measure(
    mappings: Iterable[tuple[str | os.PathLike[str], int, int]] = (),
    pool: Pool | None = None,
    heap: Iterable[tuple[str, int]] = (),
    planned: dict[str, int] | None = None,
    baseline: Usage | None = None,
) -> MemoryReport:
    """The MemoryReport of this moment.

    mappings: (path, address, nbytes) of every mapped file; pool: a Pool or None; heap: (name,
    resident bytes) that the caller measured; planned: {purpose: bytes}; baseline: a Usage, None for
    that of the import.
    """
    baseline = baseline or BASELINE
    now = usage()
    files = [
        Entry(os.path.basename(path), nbytes, resident_bytes(address, nbytes, is_file=True))
        for path, address, nbytes in mappings
    ]
    pool_resident, purposes = _pool_entries(pool) if pool is not None else (None, [])
    stacks = [
        Entry(name, nbytes, resident_bytes(address, nbytes, is_file=False))
        for name, address, nbytes in thread_stacks(now.ranges, THREADS)
    ]
    return MemoryReport(
        files=files,
        pool=pool.stats() if pool is not None else None,
        pool_resident=pool_resident,
        purposes=purposes,
        stacks=stacks,
        heap=[Entry(name, nbytes, nbytes) for name, nbytes in heap],
        libraries=_minus(now.libraries(mappings), baseline.libraries()),
        now=now,
        baseline=baseline,
        planned=planned or {},
    )


BASELINE, THREADS = usage(), threads()
