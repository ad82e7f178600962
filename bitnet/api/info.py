"""info(): what was found on this machine and chosen."""

from typing import Any

import numpy as np

from ..runtime import cgroup, cpu, dispatch
from ..version import VERSION


def info() -> dict[str, Any]:
    """What was found on this machine and chosen, as a dict: instruction set, threads, and why."""
    dispatch.check()
    n_threads, why = cpu.threads()
    return {
        "version": VERSION,
        "isa": dispatch.isa,
        "isa_reason": dispatch.reason,
        "threads": n_threads,
        "threads_reason": why,
        **cpu.info(),
        "cgroup_memory": cgroup.memory_left(),
        "huge_pages": cpu.huge_pages(),
        "numpy": np.__version__,
    }
