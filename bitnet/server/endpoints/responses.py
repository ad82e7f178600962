"""POST /v1/responses: one message of text, with OpenAI's typed events; nothing is stored."""

from starlette.requests import Request
from starlette.types import ASGIApp

from .. import schema
from ..generate import generate
from ..response_events import ResponseEvents
from ..service import Service
from ..tools import unmarked


async def responses(service: Service, request: Request) -> ASGIApp:
    """The response to ``input``, whole or as a stream."""
    body = await service.parse(request, schema.ResponsesRequest)

    def prompt() -> list[int]:
        messages = [unmarked(message) for message in body.messages()]
        return service.model.encode_chat(messages, body.chat_template_kwargs)

    return await generate(
        service,
        request,
        body,
        ResponseEvents(body, service.model_name),
        [prompt],
        n_sequences=1,
        max_tokens=body.max_output_tokens or service.model.context,
    )
