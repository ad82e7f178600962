"""POST /v1/chat/completions: the model's reply to messages, which may call functions."""

from collections.abc import Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.types import ASGIApp

from .. import schema
from ..errors import ApiError
from ..generate import generate
from ..openai_chunks import ChatChunks
from ..reply_protocol import Reply
from ..service import Service
from ..thinking import effort_values
from ..tools import Tools, history
from ..truncation import fitted


async def chat(service: Service, request: Request) -> ASGIApp:
    """``n`` replies to ``messages``, whole or as a stream."""
    return await reply_to(service, request, await service.parse(request, schema.ChatRequest))


async def reply_to(
    service: Service,
    request: Request,
    body: schema.ChatRequest,
    written: Callable[[ChatChunks], Reply] | None = None,
) -> ASGIApp:
    """The same for a parsed body. written: what writes the chunks down in another protocol."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs", param="top_logprobs")
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    tools = tools_of(body)
    may_call = tools is not None and tools.may_call
    reply = ChatChunks(service.model_name, service.spell, n_logprobs is not None, may_call)
    encode = partial(encode_chat, service, body, tools, reply)

    def prompt() -> list[int]:
        if body.truncates:
            ids = fitted(encode, body.messages, service.model.context)
        else:
            ids = encode(body.messages)
        reply.n_prompt = len(ids)
        return ids

    return await generate(
        service,
        request,
        body,
        written(reply) if written else reply,
        [prompt],
        n_sequences=body.n or 1,
        max_tokens=body.max_completion_tokens or body.max_tokens or service.model.context,
        n_logprobs=n_logprobs,
        tools=tools,
    )


def encode_chat(
    service: Service,
    body: schema.ChatRequest,
    tools: Tools | None,
    reply: ChatChunks,
    messages: Sequence[schema.Message],
    limit: int | None = None,
) -> list[int]:
    """The token ids of the prompt; the reply is told whether it begins with reasoning.

    limit: ContextFull for more tokens; None for the context.
    """
    may_call = tools is not None and tools.may_call
    has_schema = body.response_format is not None and body.response_format.schema is not None
    reasoning_format = body.reasoning_format or service.options.reasoning_format
    plain = history(messages)
    tokenizer, values = service.model.tokenizer, dict(body.chat_template_kwargs or {})
    template = tokenizer.chat_template
    thinking = template if template is not None and template.thinks else None
    # A grammar is of a reply without thoughts.
    may_think = not (may_call or has_schema)
    if thinking and not may_think and "enable_thinking" in thinking.names:
        values.setdefault("enable_thinking", False)
    values = effort_values(template, body.reasoning_effort) | values
    told = tools.tell(plain) if tools else plain
    ids = tokenizer.chat(told, limit=limit or service.model.context, values=values)
    if thinking and reasoning_format != "none":
        reply.split_reasoning(may_think and tokenizer.opens_reasoning(ids))
    return ids


def tools_of(body: schema.ChatRequest) -> Tools | None:
    """The Tools of a chat request, None without."""
    chosen = body.tool_choice
    if not body.tools:
        if chosen in (None, "none", "auto"):
            return None
        raise ApiError(400, "tool_choice: no tools to choose from", param="tool_choice")
    choice = chosen.function if isinstance(chosen, schema.NamedTool) else chosen
    functions = [tool.function for tool in body.tools]
    return Tools(functions, choice or "auto", body.parallel_tool_calls is not False)
