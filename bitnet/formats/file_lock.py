"""A lock on an open file: it is held until the file is closed, or its process has ended."""

import logging
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("bitnet")


def wait_for(file: IO[Any]) -> bool:
    """Wait until nobody else holds the lock, and hold it. False where the system, or the disk that
    the file is on (some of networks and of user space), has no locks: then nobody does."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        log.info("%s: no lock (%s)", file.name, error.strerror)
        return False
    return True
