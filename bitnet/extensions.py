"""Imports the compiled modules; where one is missing, a line says which command builds them."""

from pathlib import Path

try:
    import bitnet.compute.openmp  # before ops: it loads OpenMP's library
    import bitnet.compute.ops
    import bitnet.runtime.mmap
    import bitnet.runtime.step_lock  # these two are not imported by ops  # noqa: F401
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("bitnet."):
        raise  # NumPy, say
    folder = Path(__file__).parents[1]
    command = "`pip install --force-reinstall bitnet-engine` brings"
    if (folder / "setup.py").exists():
        command = f"`pip install -e .` in {folder} builds"
    raise ImportError(f"{error.name} is not built: {command} bitnet's compiled modules") from None
