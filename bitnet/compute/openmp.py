"""How idle threads of OpenMP wait: chosen before its library is loaded.

libgomp reads its settings once, when it is loaded, and by default an idle thread spins for
milliseconds before it sleeps. A spinning thread (23 ns an iteration) takes up the next operation
after 1 us, a sleeping one after 16 to 50. Decode of a 2B model on two threads over that on one, by
the iterations after which a thread sleeps (bench_model.py's test_threads, medians of 6; the memory
of that hour gave two threads 1.2 times what it gave one):

    iterations                      0      100     300     1000    3000    10000
    both cores free                 0.90   1.02    1.13    1.14    1.15    1.15
    one taken by another process    0.99   1.00    1.00    1.00    0.99    0.98

A thread whose core is taken is withheld (threads.pyx): without that it was 0.93 with 300
iterations, 0.8 with 1000 and 0.49 with 10000. OMP_WAIT_POLICY and GOMP_SPINCOUNT of the user are
left alone. The room's `__init__` imports this before any other module of it.
"""

import os

SPIN_COUNT = "3000"  # iterations, 70 us: longer than what one thread does between two operations


def load_openmp():
    """Import ops, and with it libgomp, under our setting; then the environment is as it was."""
    if os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        import bitnet.compute.ops  # noqa: F401
    finally:
        del os.environ["GOMP_SPINCOUNT"]


load_openmp()
