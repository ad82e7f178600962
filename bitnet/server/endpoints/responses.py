"""POST /v1/responses: a chat in items, with OpenAI's typed events; GET and DELETE of one kept."""

from functools import partial

from starlette.requests import Request
from starlette.types import ASGIApp

from ..chat_reply import reply_to
from ..conversation import Conversation
from ..errors import JSON, ApiError
from ..openai_chunks import ChatChunks
from ..reply_protocol import Chunk
from ..response_events import ResponseEvents
from ..responses_schema import NAMES, ResponsesRequest, chat_request
from ..schema import Message
from ..service import Service


async def responses(service: Service, request: Request) -> ASGIApp:
    """The response to ``input``, whole or as a stream; kept where that is switched on."""
    body = await service.parse(request, ResponsesRequest)
    store = service.responses
    earlier, output = store.find(body.previous_response_id)
    conversation = Conversation(earlier, service.passed)
    try:
        convert = partial(chat_request, body, conversation, output, store.item)
        chat, names = await service.in_prompt_thread(convert)
        # without the instructions, which are of this response alone
        said = chat.messages[body.instructions is not None :]
        keep = partial(_keep, service, said) if body.store is not False else _forget

        def written(chunks: ChatChunks) -> ResponseEvents:
            return ResponseEvents(chunks, body, names, service.model.tokenizer.decode, keep)

        return await reply_to(service, request, chat, written)
    except ApiError as error:
        raise conversation.renamed(error, NAMES) from None


async def stored_response(service: Service, request: Request) -> ASGIApp:
    """A response that was kept, as the client got it."""
    if request.query_params.get("stream", "false") != "false":
        raise ApiError(400, "stream: not of a response that is complete", param="stream")
    return JSON(service.responses.response(request.path_params["response_id"]))


async def delete_response(service: Service, request: Request) -> ASGIApp:
    """Forget a response."""
    response_id = request.path_params["response_id"]
    service.responses.drop(response_id)
    return JSON({"id": response_id, "object": "response", "deleted": True})


def _keep(service: Service, said: list[Message], response: Chunk) -> None:
    service.responses.put(response, said)


def _forget(response: Chunk) -> None:
    pass
