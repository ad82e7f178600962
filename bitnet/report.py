"""Where the process's memory is: what the parts say they hold, and beside it what the OS counts.

Import this module last: the figures of that moment are the baseline that growth is counted from.
"""
import ctypes
import os
import resource
import sys
from dataclasses import asdict, dataclass, field

import numpy as np

from .memory import PoolStats, format_bytes

PROC = "/proc/self"
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
PRESENT, OF_FILE = np.uint64(1 << 63), np.uint64(1 << 61)       # bits of a /proc/self/pagemap entry


@dataclass(frozen=True)
class Usage:
    """What the OS counts for the process; bytes, None where it does not say."""
    rss: int | None                 # resident: in memory and mapped here
    anonymous: int | None           # of rss: no file behind it (heap, pool, stacks)
    file: int | None                # of rss: pages of files and shared memory
    pss: int | None                 # rss, each page divided by the processes that map it
    peak_rss: int
    minor_faults: int
    major_faults: int               # those that had to read from disk


@dataclass(frozen=True)
class Part:
    """Something with a name that takes up memory."""
    name: str
    nbytes: int                     # of addresses
    resident: int | None            # of them in memory; None where the OS does not say


def usage():
    """The Usage of this moment (a few milliseconds when gigabytes are mapped)."""
    counted = resource.getrusage(resource.RUSAGE_SELF)
    peak = counted.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(*_resident_kinds(), peak, counted.ru_minflt, counted.ru_majflt)


def _resident_kinds():
    """(rss, anonymous, file, pss) in bytes, None for what is not known."""
    try:
        with open(f"{PROC}/smaps_rollup") as file:
            rollup = {key: rest for key, _, rest in (line.partition(":") for line in file)}
        rss, anonymous, pss = (1024 * int(rollup[key].split()[0])
                               for key in ("Rss", "Anonymous", "Pss"))
        return rss, anonymous, rss - anonymous, pss
    except (OSError, KeyError):
        pass
    try:
        with open(f"{PROC}/statm") as file:
            rss, of_files = (PAGE_BYTES * int(pages) for pages in file.read().split()[1:3])
        return rss, rss - of_files, of_files, None
    except (OSError, ValueError):
        return None, None, None, None


def resident_bytes(address, nbytes, *, is_file):
    """Bytes of an address range that are in memory, counted in whole pages; None if unknown.

    Of a file's mapping, pages that this process has mapped; of other memory, pages of its own
    (pages that were read but never written are the system's shared page of zeros: up to 4 KiB
    each of them may be counted). Without /proc: pages in memory, whoever brought them there.
    """
    first = address // PAGE_BYTES
    n_pages = -(-(address + nbytes) // PAGE_BYTES) - first
    try:
        with open(f"{PROC}/pagemap", "rb", buffering=0) as file:
            file.seek(8 * first)
            entries = np.frombuffer(file.read(8 * n_pages), np.uint64)
        if len(entries) == n_pages:
            kind = OF_FILE if is_file else np.uint64(0)
            return PAGE_BYTES * int(np.count_nonzero(entries & (PRESENT | OF_FILE)
                                                     == PRESENT | kind))
    except OSError:
        pass
    in_core = (ctypes.c_ubyte * n_pages)()
    try:
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(first * PAGE_BYTES),
                                           ctypes.c_size_t(n_pages * PAGE_BYTES), in_core)
    except (OSError, AttributeError):
        return None
    pages = np.frombuffer(in_core, np.uint8)
    return None if failed else PAGE_BYTES * int(np.count_nonzero(pages & 1))


def _sum(sizes):
    """The sum, None when one of them is."""
    sizes = list(sizes)
    return None if None in sizes else sum(sizes)


def _minus(a, b):
    return None if a is None or b is None else a - b


@dataclass(frozen=True)
class MemoryReport:
    """Print it, or take as_dict(). Growth is since `baseline`, the import of bitnet."""
    files: list[Part]               # what is mapped
    pool: PoolStats | None
    pool_resident: int | None       # of what the pool has reserved
    stacks: list[Part]              # of threads
    others: list[Part]              # what the caller measured itself, without a file behind it
    now: Usage
    baseline: Usage = field(repr=False)

    def growth(self, kind="rss"):
        """Growth of one figure of Usage since the baseline, in bytes; None if unknown."""
        return _minus(getattr(self.now, kind), getattr(self.baseline, kind))

    def explained(self, kind="rss"):
        """Resident bytes of the parts above: "file", "anonymous", or "rss" for both."""
        files = [part.resident for part in self.files]
        pool = [self.pool_resident] if self.pool else []
        anonymous = pool + [part.resident for part in self.stacks + self.others]
        return _sum({"file": files, "anonymous": anonymous, "rss": files + anonymous}[kind])

    def unexplained(self, kind="rss"):
        """Growth that no part explains; negative when what was there before has shrunk."""
        return _minus(self.growth(kind), self.explained(kind))

    def as_dict(self):
        """Everything in plain types, for JSON."""
        figures = asdict(self)
        if self.pool:
            figures["pool"]["by_purpose"] = {
                name: dict(zip(("in_use", "peak", "count"), counts, strict=True))
                for name, counts in self.pool.by_purpose.items()}
        for figure in (self.growth, self.explained, self.unexplained):
            figures[figure.__name__] = {kind: figure(kind) for kind in ("rss", "anonymous", "file")}
        return figures

    def __str__(self):
        rows = [*self._part_rows("mapped files", self.files), *self._pool_rows(),
                *self._part_rows("thread stacks", self.stacks),
                *self._part_rows("other", self.others), *self._process_rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(f"{name:{widths[0]}}  {a:>{widths[1]}}  {b:>{widths[2]}}".rstrip()
                         for name, a, b in rows)

    def _part_rows(self, title, parts):
        if parts:
            yield title, "size", "resident"
        for part in parts:
            yield f"  {part.name}", format_bytes(part.nbytes), _shown(part.resident)

    def _pool_rows(self):
        if self.pool is None:
            return
        yield "pool", "in use", "peak"
        for name, (in_use, peak, _) in self.pool.by_purpose.items():
            yield f"  {name}", format_bytes(in_use), format_bytes(peak)
        yield "  all purposes", format_bytes(self.pool.in_use), format_bytes(self.pool.peak)
        yield f"pool (limit {format_bytes(self.pool.limit)})", "reserved", "resident"
        yield "  blocks", format_bytes(self.pool.reserved), _shown(self.pool_resident)

    def _process_rows(self):
        now = self.now
        yield "process", "now", "since import"
        yield "  resident (RSS)", _shown(now.rss), _shown(self.growth())
        yield "    anonymous", _shown(now.anonymous), _shown(self.growth("anonymous"))
        yield "    file-backed", _shown(now.file), _shown(self.growth("file"))
        yield "  explained by the parts above", "", _shown(self.explained())
        yield "  unexplained", "", _shown(self.unexplained())
        yield "    anonymous", "", _shown(self.unexplained("anonymous"))
        yield "    file-backed", "", _shown(self.unexplained("file"))
        yield "  peak RSS", format_bytes(now.peak_rss), ""
        yield "  page faults, minor", f"{now.minor_faults:,}", f"{self.growth('minor_faults'):,}"
        yield "  page faults, major", f"{now.major_faults:,}", f"{self.growth('major_faults'):,}"


def _shown(n_bytes):
    return "not available" if n_bytes is None else format_bytes(n_bytes)


def measure(mappings=(), pool=None, stacks=(), others=(), baseline=None):
    """The MemoryReport of this moment.

    mappings: (path, address, nbytes) of every mapped file; pool: a Pool or None; stacks: (name,
    address, nbytes) of every thread; others: (name, resident bytes) that the caller measured.
    """
    now = usage()
    files = [Part(os.path.basename(path), nbytes, resident_bytes(address, nbytes, is_file=True))
             for path, address, nbytes in mappings]
    pool_resident = None
    if pool is not None:
        pool_resident = _sum(resident_bytes(*block, is_file=False) for block in pool.ranges())
    stacks = [Part(name, nbytes, resident_bytes(address, nbytes, is_file=False))
              for name, address, nbytes in stacks]
    others = [Part(name, nbytes, nbytes) for name, nbytes in others]
    return MemoryReport(files, pool.stats() if pool is not None else None, pool_resident,
                        stacks, others, now, baseline or BASELINE)


BASELINE = usage()
