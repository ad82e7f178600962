"""The docstrings of this package as Markdown: a line `name: what it is` begins an item of a list.

STYLE: a docstring is running text; a line that begins with the names of arguments, with or without
a default, and a colon says what they are, and goes on in lines that are indented.
"""

import re

import griffe

ITEM = re.compile(r"^((?:\w+(?:=[^\s;,:]+)?)(?:(?:, |; )\w+(?:=[^\s;,:]+)?)*): (?=\S)")


SIGNS = re.compile(r"(?=[\[\]<*])")  # of Markdown: here they are what they look like


def as_markdown(text):
    """A docstring with its items as a list."""
    lines, is_list = [], False
    for line in literal(text).splitlines():
        match = ITEM.match(line)
        if match:
            if not is_list and lines and lines[-1].strip():
                lines.append("")
            names = ", ".join(f"`{name}`" for name in re.split("[,;] ", match[1]))
            lines.append(f"- {names}: {line[match.end() :]}")
            is_list = True
        elif line.strip() and not line.startswith(" ") and is_list:
            if lines[-1].strip():
                lines.append("")
            lines.append(line)
            is_list = False
        else:
            lines.append(line)
    return "\n".join(lines)


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
