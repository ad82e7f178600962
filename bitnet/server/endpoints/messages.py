"""POST /v1/messages, /v1/messages/count_tokens: a chat in Anthropic's protocol."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ...errors import ContextFull
from ..conversation import Conversation
from ..errors import JSON, ApiError
from ..message_events import MessageEvents
from ..messages_schema import NAMES, MessagesRequest, PromptRequest, chat_request
from ..openai_chunks import ChatChunks
from ..response_stream import while_connected
from ..schema import MAX_TOKENS_LISTED, ChatRequest
from ..service import Service
from .chat import encode_chat, reply_to, tools_of


async def messages(service: Service, request: Request) -> ASGIApp:
    """The next message of a conversation, whole or as a stream."""
    body = await service.parse(request, MessagesRequest)
    conversation = Conversation()
    try:
        chat = await service.in_prompt_thread(chat_request, body, conversation)
        return await reply_to(service, request, chat, MessageEvents)
    except ApiError as error:
        raise _in_its_words(conversation.renamed(error, NAMES), error.__context__) from None


async def count_tokens(service: Service, request: Request) -> Response:
    """How many tokens the prompt of such a request has."""
    body = await service.parse(request, PromptRequest)
    conversation = Conversation()

    def count(chat: ChatRequest) -> int:
        reply = ChatChunks(service.model_name, service.spell, has_logprobs=False)
        tools, limit = tools_of(chat), MAX_TOKENS_LISTED
        return len(encode_chat(service, chat, tools, reply, chat.messages, limit))

    try:
        with service.reservation(1):
            chat = await service.in_prompt_thread(chat_request, body, conversation)
            n = await while_connected(request, service.in_prompt_thread(count, chat))
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
