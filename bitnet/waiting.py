"""How idle threads of OpenMP wait: chosen before its library is loaded. Import this before ops.

libgomp reads its settings once, when it is loaded, and by default spins for milliseconds. Where
another process wants a core that is one thread working and one in its way. Decode of a 2B model on
two threads over that on one, on two cores, the second number with one core taken by another
process, by the turns of the waiting loop (medians of 3, each of 5):

    0       1.07    1.05        500     1.7     0.88
    100     1.51    0.92        1000    1.76    0.80
    300     1.69    0.93        10000   1.8     0.49

OMP_WAIT_POLICY and GOMP_SPINCOUNT of the user are left alone.
"""

import os

SPIN_COUNT = "3000"  # some 10 us: the gap between two operations


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
