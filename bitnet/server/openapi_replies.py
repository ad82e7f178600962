"""What replies look like, as JSON schemas; tests hold real ones against them."""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ANY: Schema = {}
TEXT_OR_NONE: Schema = {"type": ["string", "null"]}


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these properties, and maybe others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _kind(name: str) -> Schema:
    return {"const": name}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_CALL = _object(
    {"id": STRING, "type": _kind("function"),
     "function": _object({"name": STRING, "arguments": STRING})}
)  # fmt: skip
_COMPLETION = {"id": STRING, "created": COUNT, "model": STRING, "usage": _ref("Usage")}
_REASON = {"finish_reason": STRING}

REPLIES: Mapping[str, Schema] = {
    "Status": _object({"status": {"enum": ["ok", "dead", "ready", "draining"]}}),
    "Tokens": _object({"tokens": _list_of(COUNT), "count": COUNT, "max_model_len": COUNT}),
    "Text": _object({"prompt": STRING}),
    "TokenizerInfo": _object(
        {"chat_template": TEXT_OR_NONE, "bos_token": TEXT_OR_NONE, "eos_token": TEXT_OR_NONE,
         "model_max_length": COUNT}
    ),
    "Model": _object({"id": STRING, "object": _kind("model"), "max_model_len": COUNT}),
    "Deleted": _object({"id": STRING, "object": STRING, "deleted": {"const": True}}),
    "Models": _object({"object": _kind("list"), "data": _list_of(_ref("Model"))}),
    "Usage": _object(
        {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
        {"prompt_tokens_details": _object({"cached_tokens": COUNT})},
    ),
    "Timings": _object(
        {"first_token_ms": NUMBER, "total_ms": NUMBER, "prompt_per_second": NUMBER,
         "predicted_per_second": NUMBER},
        {"draft_n": COUNT, "draft_n_accepted": COUNT},
    ),
    "ReplyMessage": _object(
        {"role": _kind("assistant"), "content": TEXT_OR_NONE},
        {"reasoning_content": TEXT_OR_NONE, "tool_calls": _list_of(_CALL)},
    ),
    "ChatCompletion": _object(
        _COMPLETION | {
            "object": _kind("chat.completion"),
            "choices": _list_of(
                _object({"index": COUNT, "message": _ref("ReplyMessage")} | _REASON)
            ),
        },
        {"timings": _ref("Timings")},
    ),
    "TextCompletion": _object(
        _COMPLETION | {
            "object": _kind("text_completion"),
            "choices": _list_of(_object({"index": COUNT, "text": STRING} | _REASON)),
        },
        {"timings": _ref("Timings")},
    ),
    "Response": _object(
        {"id": STRING, "object": _kind("response"), "model": STRING, "status": STRING,
         "output": _list_of(_object({"type": STRING}))},
        {"usage": ANY, "timings": _ref("Timings")},
    ),
    "MessageReply": _object(
        {"id": STRING, "type": _kind("message"), "role": _kind("assistant"), "model": STRING,
         "content": _list_of(_object({"type": STRING})), "stop_reason": STRING,
         "usage": _object({"input_tokens": COUNT, "output_tokens": COUNT})},
    ),
    "TokenCount": _object({"input_tokens": COUNT}),
    "Embeddings": _object(
        {"object": _kind("list"), "model": STRING,
         "data": _list_of(_object({"index": COUNT, "embedding": {
             "anyOf": [_list_of(NUMBER), STRING]}})),
         "usage": _object({"prompt_tokens": COUNT, "total_tokens": COUNT})},
    ),
    "Error": _object(
        {"error": _object({"message": STRING, "type": STRING},
                          {"param": TEXT_OR_NONE, "code": TEXT_OR_NONE})},
    ),
    "AnthropicError": _object(
        {"type": _kind("error"), "error": _object({"type": STRING, "message": STRING})}
    ),
}  # fmt: skip
