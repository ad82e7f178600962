"""Bodies of requests that the fuzzer starts from. Knows nothing of the server, which may be
missing."""

BODY = "body.json"

_TOOL = {"type": "function", "function": {"name": "f", "parameters": {
    "properties": {"a": {"type": "string"}, "b": {"anyOf": [{"type": "integer"}, {"enum": [1]}]}},
    "required": ["a"]}}}  # fmt: skip
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "<x>"}'}}
CASES = {
    "chat": {
        "model": "m", "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Who?", "new": 1}]},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "content": "me", "tool_call_id": "1"},
        ], "tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}},
        "temperature": 0.5, "stop": ["a"], "logit_bias": {"5": 1}, "unknown": {"a": None},
    },
    "form": {
        "messages": [{"role": "user", "content": "x"}], "structured_outputs": {"regex": "a"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "$defs": {"a": {"properties": {"b": {"type": "integer", "multipleOf": 2}}}},
            "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"c": {"pattern": "(?=a)"}}}],
            "properties": {"d": {"type": "string", "format": "path"}}, "uniqueItems": True}}},
    },
    "text": {"prompt": [[1, 2], [3]], "echo": True, "logprobs": 1, "guided_json": '{"type": 5}'},
    "others": {"input": ["a", "b"], "dimensions": 3, "tokens": [1], "prompt": "x",
               "instructions": "y", "text": {"format": {"type": "text"}}},
    "reply": {"text": '<tool_call>\n{"name": "f", "arguments": {"a": "}\\""}}\n</tool_call>'},
    "xml": {"text": "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n"},
}  # fmt: skip
