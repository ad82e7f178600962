"""How floats are rounded, and whether denormals are zero, of each thread."""

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

IEEE: Final[int]

def swap(mode: int) -> int: ...
def in_ieee_mode(function: Callable[_P, _R]) -> Callable[_P, _R]: ...

class ieee_mode:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...
