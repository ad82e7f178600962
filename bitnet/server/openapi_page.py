"""A document of OpenAPI as a page: HTML and a style, no script, nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

Schema = dict[str, Any]

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, .path { font-family: ui-monospace, monospace; }
details { border: 1px solid #8886; border-radius: .4rem; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
b { display: inline-block; min-width: 3.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-top: 1px solid #8886; padding: .2rem .6rem .2rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
"""


def page_of(document: Schema) -> tuple[str, dict[str, str]]:
    """(the page, its headers)."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
    return "".join(_parts(document)), headers


def _parts(document: Schema) -> Iterator[str]:
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>"
        f"<p>{escape(info['description'])}. For programs: "
        '<a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p><h2>Endpoints</h2>'
    )
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _operation(method, path, operation)
    yield "<h2>Schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        # inside, so that a link to it opens the element
        yield f'<details><summary><code>{escape(name)}</code></summary><div id="{escape(name)}">'
        yield from _fields(schema)
        yield "</div></details>"
    yield "</main></body></html>"


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield (
        f'<details><summary><b>{method.upper()}</b> <span class="path">{escape(path)}</span> '
        f"{escape(operation['summary'])}</summary>"
    )
    if "security" in operation:
        yield "<p>Needs a key: <code>Authorization: Bearer</code> or <code>x-api-key</code>.</p>"
    parts = [("Body", operation.get("requestBody"))]
    parts += [(f"Answer ({code})", part) for code, part in operation["responses"].items()]
    for title, part in parts:
        for media_type, content in part["content"].items() if part else ():
            about = content["schema"].get("description")
            kind = _type(content["schema"]) + (f", {escape(about)}" if about else "")
            yield f"<p>{escape(title)}, <code>{escape(media_type)}</code>: {kind}</p>"
    yield "</details>"


def _fields(schema: Schema) -> Iterator[str]:
    required = schema.get("required", ())
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
        return
    yield "<table><thead><tr><th>field<th>value<th></tr></thead><tbody>"
    for name, value in schema["properties"].items():
        must = "required" if name in required else ""
        yield f"<tr><td><code>{escape(name)}</code><td>{_type(value)}<td>{must}</tr>"
    yield "</tbody></table>"


def _type(schema: Schema) -> str:
    """What a value may be, in words and as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(one) for one in schema[several])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    kind = schema.get("type", "any value")
    text = escape(kind if isinstance(kind, str) else " or ".join(kind))
    if kind == "array":
        text = f"list of {_type(schema.get('items', {}))}"
    return text + _bounds(schema)


def _bounds(schema: Schema) -> str:
    """The limits of a number, a text or a list."""
    lower = schema.get("minimum", schema.get("exclusiveMinimum"))
    limits = {
        "over" if "exclusiveMinimum" in schema else "from": lower,
        "to": schema.get("maximum"),
        "at least": schema.get("minLength", schema.get("minItems")),
        "at most": schema.get("maxLength", schema.get("maxItems")),
        "like": schema.get("pattern"),
    }
    shown = [f"{word} {escape(str(limit))}" for word, limit in limits.items() if limit is not None]
    return f" ({', '.join(shown)})" if shown else ""
