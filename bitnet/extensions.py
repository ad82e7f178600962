"""Imports the compiled modules; where one is missing, a line says which command builds them."""

from pathlib import Path

try:
    import bitnet.compute.openmp  # before ops: it loads OpenMP's library
    import bitnet.compute.ops
    import bitnet.runtime.mmap  # the one that ops does not import  # noqa: F401
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("bitnet."):
        raise  # NumPy, say
    raise ImportError(
        f"{error.name} is not built: `pip install -e .` in {Path(__file__).parents[1]} builds "
        "bitnet's compiled modules"
    ) from None
