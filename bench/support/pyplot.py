"""matplotlib, for the scripts beside, or a line that says how to get it."""

import sys


def pyplot():
    """matplotlib.pyplot, without a window."""
    try:
        import matplotlib
    except ImportError:
        sys.exit(f"{sys.argv[0]} needs matplotlib: pip install 'bitnet-engine[plot]'")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
