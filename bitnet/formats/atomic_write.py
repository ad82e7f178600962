"""What the file writers share: a file that appears whole or not at all, and data in pieces."""

import contextlib
import os
import secrets

import numpy as np


@contextlib.contextmanager
def atomic(path):
    """A binary file, renamed to path once it is on disk if the block ends well, removed if not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_data(file, name, data, size):
    """Write a tensor's data: an array or bytes, or an iterable of them, run now.

    ValueError naming the tensor if it is not of this many bytes.
    """
    whole = isinstance(data, bytes | bytearray | memoryview | np.ndarray)
    written = 0
    for chunk in [data] if whole else data:
        flat = np.ascontiguousarray(chunk) if isinstance(chunk, np.ndarray) else chunk
        written += file.write(flat)
    if written != size:
        raise ValueError(f"{name}: {written} bytes given, shape and type need {size}")
