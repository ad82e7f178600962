"""POST /v1/responses: one message of text, with OpenAI's typed events; nothing is stored."""

from .. import schema
from ..generate import generate
from ..response_events import ResponseEvents


async def responses(service, request):
    """The response to ``input``, whole or as a stream."""
    wanted = await service.parse(request, schema.ResponsesRequest)

    def prompts():
        yield service.model.encode_chat(list(wanted.messages()))

    return await generate(
        service,
        request,
        wanted,
        ResponseEvents(wanted, service.model_name),
        prompts,
        n_sequences=1,
        max_tokens=wanted.max_output_tokens or service.model.context,
    )
