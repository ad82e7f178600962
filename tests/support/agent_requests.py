"""What coding agents send to /v1/responses and /v1/messages: their fields and forms as they were
recorded, in our words and much shorter; and a model whose context they fit."""

from support.changed_models import rewritten
from support.paths import TINY_MODEL


def long_model(folder, context=16384):
    """bitnet-tiny as if it had been trained for a longer context."""
    changes = {"bitnet-b1.58__context_length": context}
    return rewritten(folder / "long.gguf", TINY_MODEL, **changes)


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

# Claude Code 2.1: its system prompt in blocks, the first of which is another in every request, and
# a system message behind the user's
READ = {
    "name": "Read",
    "description": "Reads a file from this machine. ",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "whole": {"type": "boolean", "description": "All of it"},
            "offset": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["whole"],
        "additionalProperties": False,
    },
}


def claude_code(nonce, *later):
    """The request of a turn. nonce: of its billing line. later: messages behind the first ones."""
    ephemeral = {"cache_control": {"type": "ephemeral"}}
    billing = f"x-anthropic-billing-header: cc_version=2.1.197.{nonce}; cc_entrypoint=cli;"
    return {
        "model": "bundled",
        "max_tokens": 300,
        "system": [
            {"type": "text", "text": billing},
            {"type": "text", "text": "You are an agent that works with files.", **ephemeral},
            {"type": "text", "text": "Rules of the house follow. " * 40, **ephemeral},
        ],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "<system-reminder>Today is Monday.</system-reminder>"},
                {"type": "text", "text": "What is in README.md?", **ephemeral}]},
            {"role": "system", "content": "Agents that may be started: none."},
            *later,
        ],
        "tools": [READ],
        "metadata": {"user_id": '{"device_id":"a"}'},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }  # fmt: skip


CLAUDE_CODE_LATER = [
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "I read it.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"whole": True}},
        {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": {"whole": False}}]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "# Readme"},
        {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True,
         "content": [{"type": "text", "text": "No such line"}, {"type": "image", "source": {}}],
         "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Go on."}]},
]  # fmt: skip
