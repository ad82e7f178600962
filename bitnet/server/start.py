"""serve(): start the server where its extra is installed, and say what is missing where it is not.

docs/server.md has the endpoints and limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .options import Options

if TYPE_CHECKING:
    from ..api.model import Model

EXTRA = "pip install 'bitnet-engine[server]'"


def serve(load: Callable[[], Model], options: Options) -> None:
    """Serve the Model that load() gives, until SIGTERM or SIGINT, then drain.

    The model should be loaded with fair=True (api.load.load_model).

    OSError if the address cannot be bound, ImportError, naming the extra, if it is not installed;
    what load raises.
    """
    try:
        from .run import run
    except ImportError as error:
        raise ImportError(f"the server needs {error.name}: {EXTRA}") from None
    run(load, options)
