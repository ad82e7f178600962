"""Bodies of requests, schemas and replies with calls: what the server reads before it computes."""

import contextlib
import json

from bitnet.errors import FormatError, GrammarError
from bitnet.generation.json_schema import prepared
from bitnet.server import messages_schema, parsing, responses_schema, schema, tool_grammar, tools
from bitnet.server.conversation import Conversation
from bitnet.server.errors import ApiError
from bitnet.text import tool_calls, tool_forms

from .request_cases import BODY

KINDS = (
    schema.ChatRequest, schema.TextRequest, schema.EmbeddingRequest, schema.TokenizeRequest,
    schema.DetokenizeRequest,
)  # fmt: skip
FORMS = (tool_forms.OURS, tool_forms.QWEN3, tool_forms.FALCON, tool_forms.LLAMA3, tool_forms.QWEN35)


def requests(folder):
    """A body as every kind of request, and what is made of it; a reply that it holds."""
    raw = (folder / BODY).read_bytes()
    for kind in KINDS:
        with contextlib.suppress(ApiError, GrammarError):
            use(parsing.parse(raw, kind, parsing.Passed()))
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(raw)
        if isinstance(value, dict):
            with contextlib.suppress(GrammarError):
                prepared(value, "x", lambda field, what: None)
    text = raw.decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        text = str(json.loads(raw)["text"])
    for form in FORMS:
        read_reply(form, text)


def responses(folder):
    """A request to /v1/responses; an item that it refers to is a message."""
    item = {"type": "message", "role": "user", "content": "x"}

    def chat_of(body):
        return responses_schema.chat_request(body, Conversation(), [], lambda *name: item)[0]

    _converted(folder, responses_schema.ResponsesRequest, chat_of)


def messages(folder):
    """A request to /v1/messages."""

    def chat_of(body):
        return messages_schema.chat_request(body, Conversation())

    _converted(folder, messages_schema.MessagesRequest, chat_of)


def _converted(folder, kind, chat_of):
    """A request as one of a chat, and what is made of that."""
    path = folder / BODY
    try:
        use(chat_of(parsing.parse(path.read_bytes(), kind, parsing.Passed())))
    except (ApiError, GrammarError) as error:
        raise FormatError(path, "request", str(error), "a request") from None


def use(body):
    """What comes before anything is computed."""
    if isinstance(body, schema.CompletionsRequest) and body.form is not None:
        field, (kind, value) = body.form
        if kind == "json_schema":
            prepared(value, field, lambda field, what: None)
    if not isinstance(body, schema.ChatRequest):
        return
    for form in FORMS:
        tools.history(body.messages, form)
        if body.tools:
            functions = [tool.function for tool in body.tools]
            made = tools.Tools(functions, "auto", True, form)
            made.tell([{"role": "user", "content": "x"}])
            rules = tool_grammar.rules(
                form, list(enumerate(functions)), 2, False, lambda field, what: None, None
            )
            assert all(isinstance(line, str) for line in rules)


def read_reply(form, text):
    """The same news whole and in two pieces, and nothing in them that the reply has not."""
    found = []
    for cut in (len(text), len(text) // 2):
        reader = tool_calls.CallReader(form)
        news = [*reader.push(text[:cut], cut == len(text))]
        if cut < len(text):
            news += reader.push(text[cut:], True)
        joined = {}
        for kind, value in news:
            joined[kind] = joined.get(kind, "") + value
        found.append(joined)
        assert form.key is None or all(value in text for kind, value in news)
    assert found[0] == found[1], (form.name, text)
