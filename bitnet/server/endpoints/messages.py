"""POST /v1/messages, /v1/messages/count_tokens: a chat in Anthropic's protocol."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ...errors import ContextFull
from ..chat_reply import Asked, reply_to
from ..conversation import Conversation
from ..errors import JSON, ApiError
from ..message_events import MessageEvents
from ..messages_schema import NAMES, MessagesRequest, PromptRequest, chat_request
from ..response_stream import while_connected
from ..schema import MAX_TOKENS_LISTED
from ..service import Service


async def messages(service: Service, request: Request) -> ASGIApp:
    """The next message of a conversation, whole or as a stream."""
    body = await service.parse(request, MessagesRequest)
    conversation = Conversation(passed=service.passed)
    try:
        chat = await service.in_prompt_thread(chat_request, body, conversation)
        return await reply_to(service, request, chat, MessageEvents)
    except ApiError as error:
        raise _in_its_words(conversation.renamed(error, NAMES), error.__context__) from None


async def count_tokens(service: Service, request: Request) -> Response:
    """How many tokens the prompt of such a request has."""
    body = await service.parse(request, PromptRequest)
    conversation = Conversation(passed=service.passed)

    try:
        with service.reservation(1):
            chat = await service.in_prompt_thread(chat_request, body, conversation)
            encode = (await Asked.of(service, chat)).encode
            counted = service.in_prompt_thread(encode, chat.messages, MAX_TOKENS_LISTED)
            n = len(await while_connected(request, counted))
    except ApiError as error:
        raise _in_its_words(conversation.renamed(error, NAMES), error.__context__) from None
    return JSON({"input_tokens": n})


def _in_its_words(error: ApiError, reason: BaseException | None) -> ApiError:
    """Clients shorten a conversation when they read these words."""
    if not isinstance(reason, ContextFull):
        return error
    n = reason.length + reason.requested
    message = f"prompt is too long: {n} tokens > {reason.capacity} maximum"
    return ApiError(400, message, code=error.code)
