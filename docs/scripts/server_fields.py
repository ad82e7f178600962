"""The page of what requests may hold: made of the structs that the server reads them with."""

import contextlib
import re
from inspect import getsource
from typing import Any

import msgspec
from msgspec import inspect

from bitnet.server import messages_schema, responses_schema, schema
from bitnet.server.app import ENDPOINTS

REQUESTS = {  # path of an endpoint: what its body is read as
    "/v1/chat/completions": schema.ChatRequest,
    "/v1/completions": schema.TextRequest,
    "/v1/embeddings": schema.EmbeddingRequest,
    "/v1/responses": responses_schema.ResponsesRequest,
    "/v1/messages": messages_schema.MessagesRequest,
    "/v1/messages/count_tokens": messages_schema.PromptRequest,
    "/tokenize": schema.TokenizeRequest,
    "/detokenize": schema.DetokenizeRequest,
}
INTRO = """# Fields of requests

This page is made of the structs that the server reads requests with, when the site is built. \
[The server's page](../server.md) says what the fields do. A field of another name is ignored, and \
logged once; `bitnet serve --strict` refuses it with a 400. Every field may be null where null is \
its default.

| method | path | |
|---|---|---|
"""


def page():
    rows = []
    for method, path, function in ENDPOINTS:
        shown = f"[`{path}`](#{anchor(path)})" if path in REQUESTS else f"`{path}`"
        rows.append(f"| {method} | {shown} | {first_sentence(function)} |\n")
    nested: dict[str, Any] = {}
    parts = [INTRO + "".join(rows)]
    for path, struct in REQUESTS.items():
        parts.append(f"\n## {path} {{ #{anchor(path)} }}\n\n" + table(struct, nested))
    parts.append("\n## Objects inside requests\n")
    done: set[str] = set()
    while todo := sorted(nested.keys() - done):
        for name in todo:
            title = f"\n### {name} {{ #object-{name.lower()} }}\n\n"
            parts += title, table(nested[name], nested)
        done.update(todo)
    return "".join(parts)


def anchor(path):
    return path.strip("/").replace("/", "-").replace("_", "-")


def first_sentence(function):
    return (function.__doc__ or "").partition("\n")[0].replace("|", "\\|")


def table(struct, nested):
    """Markdown of a struct's fields; structs inside it are added to nested."""
    found, without_effect = inspect.type_info(struct), ignored(struct)
    lines = ["| field | type and bounds | default |", "|---|---|---|"]
    if found.tag_field:
        lines.append(f'| `{found.tag_field}` | `"{found.tag}"` | required |')
    for field in sorted(found.fields, key=lambda f: (not f.required, f.encode_name)):
        is_ignored = field.name in without_effect
        kind = "any; changes nothing" if is_ignored else text_of(field.type, nested)
        default = "required" if field.required else default_of(field)
        lines.append(f"| `{field.encode_name}` | {kind} | {default} |")
    return "\n".join(lines) + "\n"


def default_of(field):
    default = field.default
    if default is None or default is msgspec.UNSET or default is msgspec.NODEFAULT:
        return ""
    return f"`{msgspec.json.encode(default).decode()}`"


def bounds(kind, lower="ge", upper="le", unit=""):
    """ "at least 1, at most 16", as the type says; not what a number of so many bits is anyway."""
    words = []
    for name, text in (lower, "at least"), ("gt", "above"), (upper, "at most"), ("lt", "below"):
        value = getattr(kind, name, None)
        if value is not None and (name == "gt" or abs(value) < 2**31 - 1):
            shown = f"{int(value):,}" if value == int(value) else f"{value:g}"
            words.append(f"{text} {shown}{unit}")
    return ", ".join(words)


def ignored(struct):
    """The fields that say nothing to this server: annotated so in the source of the struct."""
    found = set()
    for one in struct.__mro__:
        with contextlib.suppress(OSError, TypeError):  # made without a source
            found |= set(re.findall(r"^    (\w+): Ignored\b", getsource(one), re.M))
    return found


def text_of(kind, nested):
    """A type in words, as Markdown."""
    name = type(kind).__name__
    if name == "UnionType":
        types = [t for t in kind.types if type(t).__name__ not in ("NoneType", "UnsetType")]
        return " or ".join(dict.fromkeys(text_of(t, nested) for t in types)) or "null"
    if name == "StructType":
        nested[kind.cls.__name__] = kind.cls
        return f"[{kind.cls.__name__}](#object-{kind.cls.__name__.lower()})"
    if name == "LiteralType":
        return " or ".join(f"`{msgspec.json.encode(v).decode()}`" for v in kind.values)
    if name == "IntType":
        words = "integer", bounds(kind)
    elif name == "FloatType":
        words = "number", bounds(kind)
    elif name == "StrType":
        limit = bounds(kind, "min_length", "max_length", " characters")
        pattern = f"matches `{kind.pattern}`".replace("|", "\\|") if kind.pattern else ""
        words = "text", limit, pattern
    elif name == "ListType":
        entries = text_of(kind.item_type, nested)
        words = f"list of {entries}", bounds(kind, "min_length", "max_length", " entries")
    elif name == "DictType":
        words = "object", bounds(kind, "min_length", "max_length", " entries")
    else:
        plain = {"BoolType": "boolean", "NoneType": "null", "AnyType": "any"}
        words = (plain[name],)
    return ", ".join(filter(None, words))
