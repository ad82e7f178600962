"""Operations over arrays and threads; the only room with OpenMP."""

from . import openmp  # noqa: F401  before all others: it loads OpenMP's library
