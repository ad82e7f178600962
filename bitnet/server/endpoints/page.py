"""GET / and /page/NAME: the chat page and its files, which load nothing from elsewhere.

They lie in server/page: plain modules and styles, and in its vendor folder other people's, whose
manifest tells what they are and their hashes.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...generation.sampling_fields import SAMPLING_FIELDS
from .. import schema
from ..errors import ApiError
from ..service import Service

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles are files of this server, none stands in the page; text that a script would
# make HTML or a script of is refused by the browser (Trusted Types), whoever wrote it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
# Fields of a request that the page's settings have beside those of Sampling
OTHER_FIELDS = ("max_tokens", "min_tokens", "stop", "logit_bias")


async def page(service: Service, request: Request) -> Response:
    """The page, with a policy that lets a browser run this server's scripts and styles only."""
    return _response(request, _files()["index.html"], PAGE_HEADERS)


async def page_file(service: Service, request: Request) -> Response:
    """A file of the page by its name; ApiError 404 for another name."""
    file = _files().get(request.path_params["name"])
    if file is None:
        raise ApiError(404, "Not Found")
    return _response(request, file, {})


@dataclass(frozen=True)
class File:
    """data, its media type, and a tag that changes with it."""

    data: bytes
    media_type: str
    tag: str


def _response(request: Request, file: File, headers: dict[str, str]) -> Response:
    """The file, or 304 to who has it already: a browser asks each time, so that none is stale."""
    headers = headers | {"cache-control": "no-cache", "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=file.media_type)


@cache
def _files() -> dict[str, File]:
    """All files by name; read once, so that no name of a request becomes a path."""
    folder = resources.files("bitnet.server") / "page"
    found = {"fields.json": _file(msgspec.json.encode(page_fields()), "application/json")}
    for prefix, inside in (("", folder), ("vendor/", folder / "vendor")):
        for one in inside.iterdir():
            kind = MEDIA_TYPES.get(one.name[one.name.rfind(".") :])
            if kind is not None:
                found[prefix + one.name] = _file(one.read_bytes(), kind)
    return found


def _file(data: bytes, media_type: str) -> File:
    return File(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def page_fields() -> dict[str, Any]:
    """{field of a request: the JSON schema of its values}, of those that the settings have."""
    definitions = msgspec.json.schema(schema.CompletionsRequest)["$defs"]
    properties = definitions["CompletionsRequest"]["properties"]
    names = [*(field.name for field in SAMPLING_FIELDS), *OTHER_FIELDS]
    return {name: _richest(properties[name]["anyOf"]) for name in names}


def _richest(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the types of a field, the one that is not null and, of a text and texts, the list."""
    return [choice for choice in choices if choice["type"] != "null"][-1]
