"""The reply to a chat request, whatever protocol it came in, and how its prompt is written.

/v1/responses and /v1/messages become such requests (conversation.py).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from ..errors import TemplateError
from ..text.chat_template import ChatTemplate
from ..text.tokenizer import Tokenizer
from ..text.tool_forms import OURS, ToolForm
from . import schema
from .errors import ApiError
from .generate import generate, most_tokens
from .openai_chunks import ChatChunks
from .reply_protocol import Reply
from .service import Service
from .tool_grammar import MAY_THINK, THINKS
from .tools import Tools, history
from .truncation import fitted

# Efforts that stand in for one that a template does not know
LIKE = {"none": ("low",), "minimal": ("low",), "high": ("xhigh",), "xhigh": ("high",),
        "max": ("xhigh", "high")}  # fmt: skip


async def reply_to(
    service: Service,
    request: Request,
    body: schema.ChatRequest,
    written: Callable[[ChatChunks], Reply] | None = None,
) -> ASGIApp:
    """``n`` replies to the messages, whole or as a stream. ApiError, ClientGone.

    written: what writes the chunks down in another protocol.
    """
    _check(body)
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = await Asked.of(service, body)
    tools = asked.tools
    reply = ChatChunks(
        service.model_name,
        service.spell,
        n_logprobs is not None,
        tools.reader if tools is not None and tools.may_call else None,
    )
    if body.echo and body.continue_final_message:
        reply.begin_with(body.messages[-1].text("messages[-1]"))
    template = service.model.tokenizer.chat_template
    splits_reasoning = template is not None and template.thinks and _splits_reasoning(service, body)
    if tools is not None and splits_reasoning and asked.may_think:
        tools.thoughts = MAY_THINK

    def prompt() -> list[int]:
        if body.truncates:
            ids = fitted(asked.encode, body.messages, service.model.context)
        else:
            ids = asked.encode(body.messages)
        reply.n_prompt = len(ids)
        if splits_reasoning:
            begins_inside = asked.may_think and asked.tokenizer.opens_reasoning(ids)
            reply.split_reasoning(begins_inside)
            if tools is not None and begins_inside:
                tools.thoughts = THINKS
        return ids

    return await generate(
        service,
        request,
        body,
        written(reply) if written else reply,
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


def _splits_reasoning(service: Service, body: schema.ChatRequest) -> bool:
    """Whether what a reply begins with, as reasoning, is told apart from its text."""
    reasoning_format = body.reasoning_format or service.options.reasoning_format
    return reasoning_format != "none" and not body.continue_final_message


@dataclass(frozen=True)
class Asked:
    """How the prompt of a request is written. form: of calls. may_think: whether the reply may."""

    tokenizer: Tokenizer
    context: int
    body: schema.ChatRequest
    tools: Tools | None
    form: ToolForm
    may_think: bool

    @classmethod
    async def of(cls, service: Service, body: schema.ChatRequest) -> "Asked":
        """Of a request. ApiError."""
        has_calls = any(m.role == "tool" or m.tool_calls for m in body.messages)
        form = await service.tool_form() if body.tools or has_calls else OURS
        tools = tools_of(body, form)
        model = service.model
        if tools is not None and tools.may_call:
            values = _values(body, model.tokenizer.chat_template)[0]
            may_think = (
                _splits_reasoning(service, body)  # or calls would be read in it
                and values.get("enable_thinking") is not False
            )
        else:
            may_think = body.form is None  # that grammar is of a reply without thoughts
        return cls(model.tokenizer, model.context, body, tools, form, may_think)

    def encode(self, given: Sequence[schema.Message], limit: int | None = None) -> list[int]:
        """The token ids of messages. limit: ContextFull for more of them; None for the context.

        A template may refuse what another field than chat_template_kwargs says, or drop calls and
        results of a request without tools: then its like is tried, and calls as text.
        """
        body, tools, template = self.body, self.tools, self.tokenizer.chat_template
        forms = [self.form, OURS] if self.form.is_templates and tools is None else [self.form]
        first: TemplateError | None = None
        for one, values in itertools.product(forms, _values(body, template)):
            messages = history(given, one)
            if not self.may_think and template is not None and template.thinks:
                silent = {"enable_thinking": False} if "enable_thinking" in template.names else {}
                values = silent | values
            try:
                return self.tokenizer.chat(
                    tools.tell(messages) if tools else messages,
                    body.add_generation_prompt is not False,
                    limit or self.context,
                    values,
                    tools.told if tools else (),
                    bool(body.continue_final_message),
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


def tools_of(body: schema.ChatRequest, form: ToolForm = OURS) -> Tools | None:
    """The Tools of a chat request, None without."""
    chosen = body.tool_choice
    if not body.tools:
        if chosen in (None, "none", "auto"):
            return None
        raise ApiError(400, "tool_choice: no tools to choose from", param="tool_choice")
    choice = chosen.function if isinstance(chosen, schema.NamedTool) else chosen
    functions = [tool.function for tool in body.tools]
    return Tools(functions, choice or "auto", body.parallel_tool_calls is not False, form)
