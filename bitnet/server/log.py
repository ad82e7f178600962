"""The server's log: methods, paths, counts and times, never a word of a prompt or a reply."""

import logging
import sys
import traceback

log = logging.getLogger("bitnet.server")


def set_up() -> None:
    """One line an event on stderr, those of loading a model among them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("bitnet").setLevel(logging.INFO)


def log_mistake(error: BaseException) -> None:
    """Where an unforeseen error happened; not its message, which could quote a request."""
    trace = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(trace[-6:]))
    log.error("%s at %s", type(error).__name__, where)
