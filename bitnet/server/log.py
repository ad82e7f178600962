"""The server's log: methods, paths, counts and times, never a word of a prompt or a reply."""

import logging
import sys
import time
import traceback
from typing import Any

import msgspec

log = logging.getLogger("bitnet.server")


def set_up(log_format: str = "text") -> None:
    """One line an event on stderr, those of loading a model among them. log_format: of options.

    In the format "json" a line is an object with time (UTC), level, message, and of a request the
    fields of log_request.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JSONFormatter() if log_format == "json" else text)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("bitnet").setLevel(logging.INFO)


class JSONFormatter(logging.Formatter):
    """A record as a line of JSON, with the fields of its ``fields`` where it has any."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__  # its message could quote a request
        return msgspec.json.encode(line | getattr(record, "fields", {})).decode()


def log_request(method: str, path: str, status: int, seconds: float, **fields: Any) -> None:
    """The line of a request. fields: more of it, in the format "json" alone; None is left out."""
    about = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    about |= {name: value for name, value in fields.items() if value is not None}
    log.info("%s %s %s %.1f ms", method, path, status, 1000 * seconds, extra={"fields": about})


def log_mistake(error: BaseException) -> None:
    """Where an unforeseen error happened; not its message, which could quote a request."""
    trace = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(trace[-6:]))
    log.error("%s at %s", type(error).__name__, where)
