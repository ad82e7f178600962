"""How idle threads of OpenMP wait: chosen before its library is loaded. Import this before ops.

libgomp reads its settings once, when it is loaded, and by default spins for milliseconds. Where
another process wants a core that is one thread working and one in its way: a step on two threads
took 1.7 times as long as on one, and up to 25 ms a region instead of 0.05. A thousand turns (some
50 us, the gap between two operations) keep the team together and give the core back otherwise:
0.97 times on the busy machine. OMP_WAIT_POLICY and GOMP_SPINCOUNT of the user are left alone.
"""

import os

SPIN_COUNT = "1000"


def load_openmp():
    """Import ops, and with it libgomp, under our setting; the environment is as before then."""
    if os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        from . import ops  # noqa: F401
    finally:
        del os.environ["GOMP_SPINCOUNT"]


load_openmp()
