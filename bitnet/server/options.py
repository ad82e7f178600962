"""What a server is told when it starts, checked before anything is loaded."""

import ipaddress
from dataclasses import dataclass

from ..checks import check_choice

LOG_FORMATS = "text", "json"
MIN_KEY_LENGTH = 8  # characters: shorter keys can be tried out over a network


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Options:
    """ValueError for what is out of range, and for an open address without a key.

    host, port: where to listen; port 0: a free one. api_key: what clients must send, None for
    nothing; more_keys: others that do as well. Each key is a client where there are several, who
    share the model fairly; else each address is one. trusted_proxies: addresses and networks whose
    X-Forwarded-For tells it. tls_cert, tls_key: PEM files of the chain and its key, both or none.
    log_format: "text" or "json". allow_hosts: names this server may be called by, beside localhost,
    its host and IP addresses. cors_origins: web pages of other origins that may use it. queue:
    sequences that may wait for a slot. model_names: what clients call the model, its name first; ()
    for the file's. embedding_name: what they call the model of embeddings beside it, None for the
    file's. strict: refuse unknown fields, other names of the model, and what of a schema is not
    followed. drain_seconds: how long requests may go on after SIGTERM. read_seconds, write_seconds:
    how long a client may take to send its headers, and its body, and to take what is sent.
    reasoning_format: one of text.reasoning.FORMATS, where a request says nothing. response_store:
    bytes of responses that are kept for previous_response_id, 0 for none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    queue: int = 48
    model_names: tuple[str, ...] = ()
    embedding_name: str | None = None
    strict: bool = False
    drain_seconds: float = 30.0
    read_seconds: float = 20.0
    write_seconds: float = 20.0
    reasoning_format: str = "auto"
    response_store: int = 0
    more_keys: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    log_format: str = "text"

    def __post_init__(self) -> None:
        for key in self.keys:
            if len(key) < MIN_KEY_LENGTH:
                raise ValueError(f"api key: too short (at least {MIN_KEY_LENGTH} characters)")
            if not (key.isascii() and key.isprintable() and key == key.strip()):
                raise ValueError("api key: not printable ASCII, which a header can carry")
        check_choice("log format", self.log_format, LOG_FORMATS)
        for proxy in self.trusted_proxies:
            _check_network(proxy)
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("cert", "key") if self.tls_key is None else ("key", "cert")
            raise ValueError(f"tls {missing}: missing, beside the tls {given} (--tls-{missing})")
        if not self.keys and not is_loopback(self.host):
            raise ValueError(
                f"host: {self.host} can be reached by other machines: "
                "an API key is needed (--api-key or BITNET_API_KEY)"
            )
        for origin in self.cors_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ValueError(f"cors origin: {origin!r} (like https://example.org, no path)")

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that clients may send; none where they need none."""
        return (() if self.api_key is None else (self.api_key,)) + self.more_keys


def _check_network(proxy: str) -> None:
    try:
        ipaddress.ip_network(proxy)
    except ValueError as error:
        raise ValueError(f"trusted proxy: {error} (like 127.0.0.1 or 10.0.0.0/8)") from None
