"""An HTTP server that speaks OpenAI's protocol; needs the extra `server`."""

from .start import EXTRA, serve

__all__ = ["EXTRA", "serve"]
