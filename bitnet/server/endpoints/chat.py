"""POST /v1/chat/completions: the model's reply to messages, which may call functions."""

from starlette.requests import Request
from starlette.types import ASGIApp

from .. import schema
from ..errors import ApiError
from ..generate import generate
from ..openai_chunks import ChatChunks
from ..service import Service
from ..tools import Tools, history


async def chat(service: Service, request: Request) -> ASGIApp:
    """``n`` replies to ``messages``, whole or as a stream."""
    body = await service.parse(request, schema.ChatRequest)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs", param="top_logprobs")
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    tools = _tools(body)

    def prompt() -> list[int]:
        messages = history(body.messages)
        return service.model.encode_chat(tools.tell(messages) if tools else messages)

    may_call = tools is not None and tools.may_call
    reply = ChatChunks(service.model_name, service.spell, n_logprobs is not None, may_call)
    return await generate(
        service,
        request,
        body,
        reply,
        [prompt],
        n_sequences=body.n or 1,
        max_tokens=body.max_completion_tokens or body.max_tokens or service.model.context,
        n_logprobs=n_logprobs,
        tools=tools,
    )


def _tools(body: schema.ChatRequest) -> Tools | None:
    """The Tools of a chat request, None without."""
    chosen = body.tool_choice
    if not body.tools:
        if chosen in (None, "none", "auto"):
            return None
        raise ApiError(400, "tool_choice: no tools to choose from", param="tool_choice")
    choice = chosen.function if isinstance(chosen, schema.NamedTool) else chosen
    functions = [tool.function for tool in body.tools]
    return Tools(functions, choice or "auto", body.parallel_tool_calls is not False)
