"""POST /v1/chat/completions: the model's reply to messages, which may call functions."""

from starlette.requests import Request
from starlette.types import ASGIApp

from .. import schema
from ..chat_reply import reply_to
from ..service import Service


async def chat(service: Service, request: Request) -> ASGIApp:
    """``n`` replies to ``messages``, whole or as a stream."""
    return await reply_to(service, request, await service.parse(request, schema.ChatRequest))
