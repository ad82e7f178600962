"""What coding agents send to /v1/responses and /v1/messages: their fields and forms as they were
recorded, in our words and much shorter; and a model whose context they fit."""

from support.changed_models import rewritten

from bitnet.api.load import BUNDLED_MODEL


def long_model(folder, context=16384):
    """The bundled model as if it had been trained for a longer context."""
    changes = {"bitnet-b1.58__context_length": context}
    return rewritten(folder / "long.gguf", BUNDLED_MODEL, **changes)


# Codex CLI 0.147: every kind of tool and item it sends to a server of another maker
SHELL = {
    "type": "function",
    "name": "exec_command",
    "description": "Runs a command and returns what it prints.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "cmd": {"type": "string", "description": "what to run", "maxLength": 12},
            "login": {"type": "boolean", "description": "whether in a login shell"},
        },
        "required": ["login"],
        "additionalProperties": False,
    },
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Changes files. The patch is free text, not JSON.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin" /.+/'},
}
AGENTS = {
    "type": "namespace",
    "name": "helpers",
    "description": "Starts other agents.",
    "tools": [
        {"type": "function", "name": "spawn", "description": "Starts one.", "strict": False,
         "parameters": {"type": "object", "properties": {"quiet": {"type": "boolean"}},
                        "required": ["quiet"], "additionalProperties": False}},
    ],
}  # fmt: skip


def part(text):
    return {"type": "input_text", "text": text}


CODEX_FIRST = [
    {"type": "message", "role": "developer",
     "content": [part("<permissions>only here</permissions>"), part("<mode>work</mode>")]},
    {"type": "message", "role": "user", "content": [part("<environment>/tmp</environment>")]},
    {"type": "message", "role": "user", "content": [part("What is in this folder?")]},
]  # fmt: skip
CODEX = {
    "model": "bundled",
    "instructions": "You are an agent that works in a terminal. " * 40,
    "input": CODEX_FIRST,
    "tools": [
        SHELL, PATCH, AGENTS, {"type": "web_search", "external_web_access": False},
        {"type": "image_generation", "output_format": "png"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto", "context": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "service_tier": "auto",
    "prompt_cache_key": "0199-a",
    "text": {"verbosity": "medium"},
    "client_metadata": {"x-codex-installation-id": "b"},
}  # fmt: skip
CODEX_SECOND = [
    *CODEX_FIRST,
    {"type": "reasoning", "summary": [], "encrypted_content": None,
     "content": [{"type": "reasoning_text", "text": "Look first."}]},
    {"type": "message", "role": "assistant", "phase": "commentary",
     "content": [{"type": "output_text", "text": "I look."}]},
    {"type": "function_call", "name": "exec_command", "arguments": '{"cmd": "ls"}',
     "call_id": "call_a"},
    {"type": "function_call", "name": "spawn", "namespace": "helpers",
     "arguments": '{"quiet": true}', "call_id": "call_b"},
    {"type": "function_call_output", "call_id": "call_a", "output": "README.md\nsetup.py"},
    {"type": "function_call_output", "call_id": "call_b",
     "output": [part("one"), {"type": "input_image", "image_url": "data:image/png;base64,AA"}]},
    {"type": "custom_tool_call", "status": "completed", "call_id": "call_c",
     "name": "apply_patch", "input": "*** Begin Patch\n+a\n*** End Patch"},
    {"type": "custom_tool_call_output", "call_id": "call_c", "output": "Done."},
]  # fmt: skip
