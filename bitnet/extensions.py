"""Are the compiled modules there? Where one is missing, a line says which command builds them.

Their files are looked for, and nothing is imported: that is for whoever needs them.
"""

import os
from importlib.machinery import EXTENSION_SUFFIXES

# A test holds these against the sources. Of the kernels those that every CPU has.
COMPILED = {
    "compute": (
        "attention", "delta_net", "elementwise", "grouped", "gumbel", "linear", "lm_head",
        "operands", "rotation", "screen_bounds", "threads",
    ),
    "kernels": ("generic",),
    "runtime": (
        "cpu", "dispatch", "float_mode", "kv_cache", "mmap", "pool", "self_test", "step_lock",
    ),
}  # fmt: skip


def check(package: str) -> None:
    """ImportError unless the folder of the package has all of them."""
    for room, names in COMPILED.items():
        files = set(os.listdir(os.path.join(package, room)))
        for name in names:
            if not any(name + suffix in files for suffix in EXTENSION_SUFFIXES):
                raise ImportError(_message(package, f"bitnet.{room}.{name}"))


def _message(package: str, module: str) -> str:
    folder = os.path.dirname(package)
    command = "`pip install --force-reinstall bitnet-engine` brings"
    if os.path.exists(os.path.join(folder, "setup.py")):
        command = f"`pip install -e .` in {folder} builds"
    return f"{module} is not built: {command} bitnet's compiled modules"


check(os.path.dirname(os.path.abspath(__file__)))
