"""The docstrings of this package as Markdown: `name: what it is` becomes an item of a list.

They are running text. A paragraph that begins with the name of an argument or attribute, with or
without a default, and a colon says what such are: one begins in a new line, or behind a full stop.
"""

import re

import griffe

NAME = r"[a-z_]\w*(?:=[^\s;,:]+)?"
ITEM = re.compile(rf"({NAME}(?:[,;] {NAME})*): (?=\S)")
NEXT_ITEM = re.compile(rf"(?<=\.) (?={NAME}(?:[,;] {NAME})*: \S)")
SIGNS = re.compile(r"(?=[\[\]<*])")  # of Markdown: here they are what they look like


def as_markdown(text):
    """A docstring with its items as lists, everything else as it looks."""
    return "\n\n".join(map(as_list, re.split(r"\n\s*\n", literal(text))))


def as_list(paragraph):
    if not ITEM.match(paragraph):
        return paragraph
    items = []
    for line in paragraph.splitlines():
        if ITEM.match(line):
            items.append(line)
        else:
            items[-1] += f" {line.strip()}"
    return "\n".join(as_item(part) for item in items for part in NEXT_ITEM.split(item))


def as_item(text):
    match = ITEM.match(text)
    names = ", ".join(f"`{name}`" for name in re.split("[,;] ", match[1]))
    return f"- {names}: {text[match.end() :]}"


def literal(text):
    """The same with signs of Markdown escaped, but for what stands between backticks."""
    parts = text.split("`")
    parts[::2] = [SIGNS.sub(r"\\", part) for part in parts[::2]]
    return "`".join(parts)


class ListsOfNames(griffe.Extension):
    """Griffe's hook."""

    def on_instance(self, *, node, obj, **keywords):
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
