"""Checks of arguments, one for each kind of value, and bytes as people write and read them."""

import math
import re
from collections.abc import Collection
from typing import overload

# suffix of a size -> bytes: K, KiB are powers of 1024, KB of 1000; and so on up to T
_UNITS = {
    unit + suffix: base**power
    for power, unit in enumerate("KMGT", 1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
} | {"": 1, "B": 1}


def check_number(
    name: str,
    value: object,
    kind: type[int] | type[float],
    lower: float,
    upper: float = math.inf,
    *,
    lower_allowed: bool = True,
) -> None:
    """ValueError unless value is a number from lower to upper.

    kind: int for whole numbers only, float for all; NumPy's numbers count as well, bool does not.
    lower_allowed: whether lower itself is a value.
    """
    import numpy as np  # here: `bitnet --help` does without

    types = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    if (
        isinstance(value, types)
        and not isinstance(value, bool)
        and (lower <= value if lower_allowed else lower < value)
        and value <= upper
    ):
        return
    what = "a whole number" if kind is int else "a number"
    if upper == math.inf:
        limit = f"of at least {lower}" if lower_allowed else f"above {lower}"
    else:
        limit = f"from {lower} to {upper}" if lower_allowed else f"above {lower}, up to {upper}"
    raise ValueError(f"{name}: {value!r} ({what} {limit})")


def check_whole(name: str, value: object, upper: int) -> None:
    """ValueError unless value is a whole number from 1 to upper."""
    check_number(name, value, int, 1, upper)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """ValueError unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r} ({' or '.join(choices)})")


@overload
def parse_bytes(name: str, value: int | str) -> int: ...


@overload
def parse_bytes(name: str, value: int | str | None) -> int | None: ...


def parse_bytes(name: str, value: int | str | None) -> int | None:
    """Bytes from an int or a text like "900M", "1.5GiB" (1024s) or "2GB" (1000s); None for None.

    ValueError, which names the argument, for what is no size of at least 1 byte.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(value), re.ASCII)
    size = float(match[1]) * _UNITS.get(match[2], 0) if match else 0
    if not 1 <= size < 2**63:
        raise ValueError(f"{name}: {value!r} (bytes, as a whole number or like 900M or 1.5GiB)")
    return int(size)


def format_bytes(n_bytes: float) -> str:
    """A number of bytes for people, in powers of 1024: '640 bytes', '1.5 MiB', '-3.0 KiB'."""
    unit = 0
    while abs(n_bytes) >= 1023.95 and unit < 4:
        n_bytes /= 1024
        unit += 1
    return f"{n_bytes:.1f} {' KMGT'[unit]}iB" if unit else f"{n_bytes} bytes"
