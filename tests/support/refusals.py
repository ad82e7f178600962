"""Damaged files: their bytes, and that they are refused by one clear error."""

import re
import struct
import time
import tracemalloc

import pytest
from fuzz.targets import open_and_run

from bitnet.errors import FormatError

ARCH = "bitnet-b1.58"
HUGE = (2**31, 2**32, 2**62, 2**63, 2**64 - 1)
BUDGET = 64 << 20  # bytes beyond the file's size


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def refused(path, pattern):
    """Open a bad file: a FormatError of the agreed form, within the budgets of time and memory."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(FormatError) as caught:
            open_and_run(path)
        seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert re.fullmatch(r".+: .+: .+ \(.+\)", message), message
    assert len(message) < 1000 and message.isprintable()
    size = path.stat().st_size if path.is_file() else 0
    assert peak < BUDGET + size and seconds < 3  # 1 s, but tracemalloc makes it three times slower


def key(name, type_id, payload):
    return lambda m: m.set(name, type_id, payload)
