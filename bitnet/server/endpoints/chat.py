"""POST /v1/chat/completions: the model's reply to messages, which may call functions."""

from collections.abc import Iterator

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
    wanted = await service.parse(request, schema.ChatRequest)
    if wanted.top_logprobs is not None and not wanted.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs", param="top_logprobs")
    n_logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
    tools = _tools(wanted)

    def prompts() -> Iterator[list[int]]:
        messages = history(wanted.messages)
        yield service.model.encode_chat(tools.tell(messages) if tools else messages)

    may_call = tools is not None and tools.may_call
    reply = ChatChunks(service.model_name, service.spell, n_logprobs is not None, may_call)
    return await generate(
        service,
        request,
        wanted,
        reply,
        prompts,
        n_sequences=wanted.n or 1,
        max_tokens=wanted.max_completion_tokens or wanted.max_tokens or service.model.context,
        n_logprobs=n_logprobs,
        tools=tools,
    )


def _tools(wanted: schema.ChatRequest) -> Tools | None:
    """The Tools of a chat request, None without."""
    chosen = wanted.tool_choice
    choice = chosen.function.name if isinstance(chosen, schema.NamedTool) else chosen
    if not wanted.tools:
        if choice in (None, "none", "auto"):
            return None
        raise ApiError(400, f"tool_choice: {choice!r} without tools", param="tool_choice")
    functions = [tool.function for tool in wanted.tools]
    return Tools(functions, choice or "auto", wanted.parallel_tool_calls is not False)
