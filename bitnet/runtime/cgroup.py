"""What the cgroups of this process leave to it: processor time and memory, of version 1 and 2.

A limit of any level counts, from the process's own group up to the root.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT, MEMBERSHIP = "/sys/fs/cgroup", "/proc/self/cgroup"
NO_LIMIT = 1 << 62  # bytes; version 1 has nearly 2^63 where nothing is set


def quota(root: str | Path = ROOT, membership: str | Path = MEMBERSHIP) -> float | None:
    """How many CPUs' time is granted (cpu.max, cpu.cfs_quota_us); None without a limit."""
    quotas = [_quota_of(folder) for folder in _folders("cpu", root, membership)]
    return min((n for n in quotas if n is not None), default=None)


def memory_left(root: str | Path = ROOT, membership: str | Path = MEMBERSHIP) -> int | None:
    """Bytes that may still be taken (memory.max, memory.limit_in_bytes); None without a limit.

    What is used already counts, but for the pages of files, which the system takes back. Swap does
    not count.
    """
    left = [_left_of(folder) for folder in _folders("memory", root, membership)]
    return min((n for n in left if n is not None), default=None)


def memory() -> int:
    """Bytes that this process can take at most: what its cgroups leave, or all of the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = memory_left()
    return machine if left is None else min(machine, left)


def _folders(controller: str, root: str | Path, membership: str | Path) -> Iterator[Path]:
    try:
        lines = Path(membership).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        bases = [Path(root, controllers), Path(root, controller)] if controllers else [Path(root)]
        parts = Path(group.lstrip("/")).parts
        for base in bases:
            for depth in range(len(parts), -1, -1):
                yield base.joinpath(*parts[:depth])


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            granted, period = (folder / "cpu.max").read_text().split()[:2]
        else:
            granted = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(granted) / int(period) if granted != "max" and int(granted) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _left_of(folder: Path) -> int | None:
    is_v2 = (folder / "memory.max").exists()
    try:
        limit = int((folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).read_text())
    except (OSError, ValueError):  # "max" is no number
        return None
    if not 0 <= limit < NO_LIMIT:
        return None
    try:
        used = int((folder / ("memory.current" if is_v2 else "memory.usage_in_bytes")).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        prefix = "" if is_v2 else "total_"
        used -= sum(int(stat[f"{prefix}{name}_file"]) for name in ("active", "inactive"))
    except (OSError, ValueError, KeyError):
        used = 0
    return max(0, limit - max(0, used))
