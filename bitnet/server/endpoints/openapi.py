"""GET /openapi.json, /docs: the endpoints and what they take, for programs and for people."""

from starlette.requests import Request
from starlette.responses import Response

from ..errors import JSON
from ..openapi import document
from ..openapi_page import page_of
from ..service import Service


async def openapi(service: Service, request: Request) -> Response:
    """The document of OpenAPI 3.1."""
    return JSON(_document(service))


async def docs(service: Service, request: Request) -> Response:
    """The same as a page without scripts."""
    text, headers = page_of(_document(service))
    return Response(text, headers=headers, media_type="text/html")


def _document(service: Service) -> dict[str, object]:
    return document(bool(service.options.keys), service.options.strict)
