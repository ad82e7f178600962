"""GET /: the chat page, one file that loads nothing from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from ..service import Service


async def page(service: Service, request: Request) -> Response:
    """The page, with a policy that lets a browser run its own script and style only."""
    text, headers = _page()
    return Response(text, headers=headers, media_type="text/html")


@cache
def _page() -> tuple[str, dict[str, str]]:
    """(text, headers)."""
    text = resources.files(__package__).joinpath("page.html").read_text()
    script, style = (_hash_of(tag, text) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {"content-security-policy": policy, "referrer-policy": "no-referrer"}


def _hash_of(tag: str, text: str) -> str:
    """The content of an element as a content security policy names it."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
