"""An HTTP server that speaks OpenAI's and Anthropic's protocols; needs the extra `server`."""

from .options import Options
from .start import EXTRA, asgi, serve

__all__ = ["EXTRA", "Options", "asgi", "serve"]
