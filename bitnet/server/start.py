"""serve() and asgi(): the server where its extra is installed, and what is missing where it is not.

docs/server.md has the endpoints and limits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .options import Options

if TYPE_CHECKING:
    from ..api.model import Model
    from .asgi_app import ASGIApplication

EXTRA = "pip install 'bitnet-engine[server]'"


def serve(load: Callable[[], Sequence[Model]], options: Options) -> None:
    """Serve the Models that load() gives, until SIGTERM or SIGINT, then drain.

    The first is the one that generates, a second one embeds. They should be loaded with fair=True
    (api.load.load_model).

    OSError if the address cannot be bound, ImportError, naming the extra, if it is not installed;
    what load raises.
    """
    try:
        from .run import run
    except ImportError as error:
        raise ImportError(f"the server needs {error.name}: {EXTRA}") from None
    run(load, options)


def asgi(
    model: Model | str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    embedding_model: Model | str | os.PathLike[str] | None = None,
    **load: Any,
) -> ASGIApplication:
    """The same endpoints as an ASGI application, for uvicorn, hypercorn, granian or any other, and
    to be mounted in another application under any prefix.

    model: a Model, which stays its owner's, or what bitnet.load takes, with its keywords in
        ``load`` (slots: 4 unless it is given): that is loaded when the application starts, and
        closed at its end. None for the bundled one.
    embedding_model: the same of a model that /v1/embeddings uses beside it. Paths have one
        memory_limit together. Either both are Models or none is.
    options: server.Options, of which host, port, tls_cert, tls_key, trusted_proxies, log_format,
        drain_seconds and read_seconds of headers are for `bitnet serve` alone. The server that
        runs the application decides who can connect: give an api_key where others can.

    It starts and ends with the server's lifespan; where it is mounted, its ``lifespan`` is a
    context manager for the application around it. Nothing is loaded later, nor dropped before.

    ImportError, naming the extra, if it is not installed; ValueError for options out of range.
    """
    try:
        from .asgi_app import ASGIApplication
    except ImportError as error:
        raise ImportError(f"the server needs {error.name}: {EXTRA}") from None
    return ASGIApplication(model, options or Options(), embedding_model, load)
