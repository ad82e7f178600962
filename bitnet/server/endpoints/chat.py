"""POST /v1/chat/completions: the model's reply to messages, which may call functions."""

import itertools
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from ...api.model import Model
from ...errors import TemplateError
from ...text.chat_template import ChatTemplate
from ...text.tool_forms import OURS, ToolForm
from .. import schema
from ..errors import ApiError
from ..generate import generate, most_tokens
from ..openai_chunks import ChatChunks
from ..service import Service
from ..tools import Tools, history

# Efforts that stand in for one that a template does not know
LIKE = {"none": ("low",), "minimal": ("low",), "high": ("xhigh",), "xhigh": ("high",),
        "max": ("xhigh", "high")}  # fmt: skip


async def chat(service: Service, request: Request) -> ASGIApp:
    """``n`` replies to ``messages``, whole or as a stream."""
    body = await service.parse(request, schema.ChatRequest)
    _check(body)
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    has_calls = any(m.role == "tool" or m.tool_calls for m in body.messages)
    form = await service.tool_form() if body.tools or has_calls else OURS
    tools = _tools(body, form)
    may_call = tools is not None and tools.may_call
    reply = ChatChunks(
        service.model_name,
        service.spell,
        n_logprobs is not None,
        tools.reader if tools is not None and may_call else None,
    )
    if body.echo and body.continue_final_message:
        reply.begin_with(body.messages[-1].text("messages[-1]"))
    may_think = not may_call and body.form is None  # a grammar is of a reply without thoughts
    reasoning_format = body.reasoning_format or service.options.reasoning_format

    def prompt() -> list[int]:
        tokenizer = service.model.tokenizer
        template = tokenizer.chat_template
        ids = _encoded(service.model, body, tools, form, may_think)
        thinks = template is not None and template.thinks
        if thinks and reasoning_format != "none" and not body.continue_final_message:
            reply.split_reasoning(may_think and tokenizer.opens_reasoning(ids))
        return ids

    return await generate(
        service,
        request,
        body,
        reply,
        [prompt],
        n_sequences=body.n or 1,
        max_tokens=most_tokens(service, body.max_completion_tokens, body.max_tokens),
        n_logprobs=n_logprobs,
        tools=tools,
    )


def _check(body: schema.ChatRequest) -> None:
    """ApiError for fields that contradict each other."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs", param="top_logprobs")
    if body.continue_final_message and body.add_generation_prompt:
        message = "continue_final_message: not together with add_generation_prompt"
        raise ApiError(400, message, param="continue_final_message")


def _encoded(
    model: Model, body: schema.ChatRequest, tools: Tools | None, form: ToolForm, may_think: bool
) -> list[int]:
    """The token ids of the conversation.

    A template may refuse what another field than chat_template_kwargs says, or drop calls and
    results of a request without tools: then its like is tried, and calls as text.
    """
    forms = [form, OURS] if form.is_templates and tools is None else [form]
    first: TemplateError | None = None
    for one, values in itertools.product(forms, _values(body, model.tokenizer.chat_template)):
        messages = history(body.messages, one)
        try:
            return model.encode_chat(
                tools.tell(messages) if tools else messages,
                values,
                tools=tools.told if tools else (),
                add_generation_prompt=body.add_generation_prompt is not False,
                continue_final_message=bool(body.continue_final_message),
                may_think=may_think,
            )
        except TemplateError as error:
            first = first or error
    assert first is not None
    raise first


def _values(body: schema.ChatRequest, template: ChatTemplate | None) -> list[dict[str, Any]]:
    """What the template may be given: chat_template_kwargs, and what other fields say in its words,
    the best first."""
    own: dict[str, Any] = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort
    if template is None or (effort is None and body.verbosity is None):
        return [own]
    asked = {
        "verbosity": body.verbosity,
        "enable_thinking": False if effort in ("none", "minimal") else None,
    }
    known = {name: value for name, value in asked.items() if value is not None}
    known = {name: value for name, value in known.items() if name in template.names}
    if effort is None or "reasoning_effort" not in template.names:
        return [known | own]
    levels = [effort, *LIKE.get(effort, ())]
    return [*(known | {"reasoning_effort": level} | own for level in levels), known | own]


def _tools(body: schema.ChatRequest, form: ToolForm = OURS) -> Tools | None:
    """The Tools of a chat request, None without."""
    chosen = body.tool_choice
    if not body.tools:
        if chosen in (None, "none", "auto"):
            return None
        raise ApiError(400, "tool_choice: no tools to choose from", param="tool_choice")
    choice = chosen.function if isinstance(chosen, schema.NamedTool) else chosen
    functions = [tool.function for tool in body.tools]
    return Tools(functions, choice or "auto", body.parallel_tool_calls is not False, form)
