"""Checks of what callers give, and bytes as people write and read them."""

import re

_UNITS = {
    unit + suffix: base**power
    for power, unit in enumerate("KMGT", 1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
} | {"": 1, "B": 1}


def check_whole(name, value, greatest):
    """ValueError unless value is an int from 1 to greatest."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= greatest:
        raise ValueError(f"{name}: {value!r} (a whole number from 1 to {greatest})")


def check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: {value!r} ({' or '.join(choices)})")


def check_ids(token_ids, vocab_size):
    """ValueError unless these are at least one token id of the vocabulary."""
    if not len(token_ids):
        raise ValueError("tokens: none (at least one; the model has no begin token to add)")
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise ValueError(f"tokens: an id is outside the vocabulary (0 to {vocab_size - 1})")


def parse_bytes(name, value):
    """Bytes from an int or a text like "900M", "1.5GiB" (1024s) or "2GB" (1000s); None for None."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(value), re.ASCII)
    size = float(found[1]) * _UNITS.get(found[2], 0) if found else 0
    if not 1 <= size < 2**63:
        raise ValueError(f"{name}: {value!r} (bytes, as a whole number or like 900M or 1.5GiB)")
    return int(size)


def format_bytes(n_bytes):
    """A number of bytes for people, in powers of 1024: '640 bytes', '1.5 MiB', '-3.0 KiB'."""
    unit = 0
    while abs(n_bytes) >= 1023.95 and unit < 4:
        n_bytes /= 1024
        unit += 1
    return f"{n_bytes:.1f} {' KMGT'[unit]}iB" if unit else f"{n_bytes} bytes"
