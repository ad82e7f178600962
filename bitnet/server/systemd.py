"""What systemd is told of a server: that it is ready, stops, is alive. See sd_notify(3).

A datagram to the socket that NOTIFY_SOCKET names; without that variable nothing is done.
"""

import os
import socket
from collections.abc import Mapping

from .log import log


class Notifier:
    """Tells systemd of this process. watchdog_seconds: how often it wants to hear, or None."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID")
        is_ours = self._address and pid in (None, str(os.getpid()))
        has_limit = is_ours and limit.isdecimal() and int(limit) > 0
        self.watchdog_seconds = int(limit) / 2e6 if has_limit else None  # half of it, as advised

    def tell(self, *lines: str) -> None:
        """Send lines like READY=1. Where nobody listens a warning is logged, once."""
        if not self._address:
            return
        # a name that begins with @ is one of Linux's abstract namespace
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.setblocking(False)  # the event loop does not wait for systemd
                one.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("NOTIFY_SOCKET: %s: %s", self._address, error.strerror or error)
            self._address, self.watchdog_seconds = "", None
