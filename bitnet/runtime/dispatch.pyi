"""Chooses the instruction set: the best this CPU has whose kernels pass a known-answer test."""

UNPROVEN: tuple[str, ...]
isa: str | None  # in use
reason: str | None  # why it was chosen
n_kernels: int

def check() -> None: ...
def choose() -> None: ...
def use(name: str | None = None) -> str: ...
