"""What /openapi.json says: the endpoints, and what they take by the schemas that check requests."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from ..version import VERSION
from .messages_schema import MessagesRequest, PromptRequest
from .openapi_replies import REPLIES
from .responses_schema import ResponsesRequest
from .schema import (
    AnyRequest,
    ChatRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TextRequest,
    TokenizeRequest,
)

Schema = dict[str, Any]
REF = "#/components/schemas/"


@dataclass(frozen=True)
class Operation:
    """An endpoint. name: its operationId. about: a sentence. request: what its body is parsed as.
    reply: of openapi_replies.REPLIES, or a media type. error: as which errors come. streams:
    whether the reply may be a stream. is_open: whether it needs no key."""

    name: str
    about: str
    reply: str
    request: type[AnyRequest] | None = None
    error: str = "Error"
    streams: bool = False
    is_open: bool = False


# (method, path of app.ENDPOINTS): what it is
OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/"): Operation("page", "The chat page.", "text/html", is_open=True),
    ("GET", "/page/{name:path}"): Operation("page_file", "A file of it.", "*/*", is_open=True),
    ("GET", "/health"): Operation(
        "health", "Whether the process can compute; 500 where it cannot.", "Status", is_open=True
    ),
    ("GET", "/ready"): Operation(
        "ready", "Whether requests are taken; 503 once the server drains.", "Status", is_open=True
    ),
    ("GET", "/metrics"): Operation("metrics", "Metrics for Prometheus.", "text/plain"),
    ("GET", "/openapi.json"): Operation(
        "openapi", "This document.", "application/json", is_open=True
    ),
    ("GET", "/docs"): Operation("docs", "This document as a page.", "text/html", is_open=True),
    ("POST", "/tokenize"): Operation(
        "tokenize", "The token ids of a text, or of messages.", "Tokens", TokenizeRequest
    ),
    ("POST", "/detokenize"): Operation(
        "detokenize", "The text of token ids.", "Text", DetokenizeRequest
    ),
    ("GET", "/tokenizer_info"): Operation(
        "tokenizer_info", "The chat template and special tokens.", "TokenizerInfo"
    ),
    ("GET", "/v1/models"): Operation("models", "The models that are here.", "Models"),
    ("GET", "/v1/models/{name:path}"): Operation("model", "One of them.", "Model"),
    ("POST", "/v1/chat/completions"): Operation(
        "chat", "The reply to messages.", "ChatCompletion", ChatRequest, streams=True
    ),
    ("POST", "/v1/completions"): Operation(
        "completions", "The continuations of texts.", "TextCompletion", TextRequest, streams=True
    ),
    ("POST", "/v1/responses"): Operation(
        "responses", "The response to a text or items.", "Response", ResponsesRequest, streams=True
    ),
    ("GET", "/v1/responses/{response_id}"): Operation(
        "response", "A response that was kept.", "Response"
    ),
    ("DELETE", "/v1/responses/{response_id}"): Operation(
        "delete_response", "Forget a response.", "Deleted"
    ),
    ("POST", "/v1/messages"): Operation(
        "messages", "The next message, in Anthropic's protocol.", "MessageReply", MessagesRequest,
        error="AnthropicError", streams=True,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "count_tokens", "How many tokens such a prompt has.", "TokenCount", PromptRequest,
        error="AnthropicError",
    ),
    ("POST", "/v1/embeddings"): Operation(
        "embeddings", "The embeddings of texts.", "Embeddings", EmbeddingRequest
    ),
}  # fmt: skip


@cache
def document(has_keys: bool, is_strict: bool) -> Schema:
    """The document, as JSON has it. has_keys: whether requests need one. is_strict: whether fields
    that nobody knows are refused."""
    paths: dict[str, Schema] = {}
    for (method, path), operation in OPERATIONS.items():
        shown = re.sub(r":\w+}", "}", path)
        paths.setdefault(shown, {})[method.lower()] = _operation(operation, shown, has_keys)
    requests = [operation.request for operation in OPERATIONS.values() if operation.request]
    _, schemas = msgspec.json.schema_components(requests, ref_template=f"{REF}{{name}}")
    given = {name: _portable(schema, is_strict) for name, schema in schemas.items()}
    taken = given.keys() & REPLIES.keys()
    assert not taken, f"both of a request and of a reply: {taken}"
    about = "Also OpenAI's and Anthropic's fields that change nothing are taken: see docs/server.md"
    return {
        "openapi": "3.1.0",
        "info": {"title": "bitnet", "version": VERSION, "description": about},
        "servers": [{"url": ".", "description": "where this document is"}],
        "paths": paths,
        "components": {
            "schemas": given | dict(REPLIES),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(operation: Operation, path: str, has_keys: bool) -> Schema:
    is_schema = operation.reply in REPLIES
    media_type = "application/json" if is_schema else operation.reply
    content: Schema = {media_type: {"schema": _ref(operation.reply) if is_schema else {}}}
    if operation.streams:
        text = {"type": "string", "description": 'server-sent events, where "stream" is true'}
        content["text/event-stream"] = {"schema": text}
    error = {"application/json": {"schema": _ref(operation.error)}}
    found: Schema = {
        "operationId": operation.name,
        "summary": operation.about,
        "responses": {
            "200": {"description": operation.about, "content": content},
            "default": {"description": "what was wrong", "content": error},
        },
    }
    if operation.request is not None:
        body = {"application/json": {"schema": _ref(operation.request.__name__)}}
        found["requestBody"] = {"required": True, "content": body}
    names = re.findall(r"{(\w+)}", path)
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if has_keys and not operation.is_open:
        found["security"] = [{"bearer": []}, {"header": []}]
    return found


def _ref(name: str) -> Schema:
    return {"$ref": REF + name}


def _portable(schema: Any, is_strict: bool) -> Any:
    """A schema of msgspec's as others read it: patterns of JavaScript, and unknown fields of nested
    objects allowed where the server passes over them (parsing.py)."""
    if isinstance(schema, list):
        return [_portable(one, is_strict) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _portable(value, is_strict) for name, value in schema.items()}
    if isinstance(found.get("pattern"), str):
        found["pattern"] = found["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
    if found.get("additionalProperties") is False and not is_strict:
        del found["additionalProperties"]
    return found
