"""The page of the command line: every command and option as argparse has them."""

import argparse

from bitnet.cli.command import command
from bitnet.cli.commands import COMMANDS
from bitnet.cli.examples import EXAMPLES

INTRO = """# Command line

This page is made of the program's own help when the site is built.

`MODEL` is a `.gguf` file, a Hugging Face folder, or `ORG/NAME[@REVISION][:FILE.gguf]` of the \
Hugging Face hub. Without one the bundled model runs. `bitnet COMMAND --help` shows the same.

Exit codes: 0 done; 1 a file, a value or a limit stood in the way; 2 wrong usage; 130 interrupted; \
141 the reader of the output went away.
"""


def page():
    parts = [INTRO, "| command | |\n|---|---|"]
    parts[-1] += "".join(f"\n| [`{name}`](#{name}) | {text} |" for name, text in COMMANDS.items())
    return "\n".join([*parts, *map(_section, COMMANDS)])


def _section(name):
    _, parser = command(name)
    examples = EXAMPLES[name].strip()
    epilog = (parser.epilog or "").partition("examples:\n")[0].strip()
    lines = [f"\n## {name}\n", f"{COMMANDS[name].capitalize()}\n"]
    lines.append(f"```text\n{parser.format_usage().strip()}\n```\n")
    if epilog:
        lines.append(f"```text\n{epilog}\n```\n" if "  bitnet" in epilog else f"{epilog}\n")
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        if actions:
            lines.append(f"| {group.title or 'options'} | |\n|---|---|")
            lines += [f"| {_names(action)} | {_help(parser, action)} |" for action in actions]
            lines.append("")
    lines.append(f"```sh\n{examples}\n```\n")
    return "\n".join(lines)


def _names(action):
    value = ""
    if action.nargs != 0:
        value = " " + (action.metavar or ",".join(map(str, action.choices or ())) or "VALUE")
        value = f" {{{value.strip()}}}" if action.choices and not action.metavar else value
    names = action.option_strings or [action.metavar or action.dest]
    return ", ".join(f"`{name}{value}`" for name in names).replace("|", "\\|")


def _help(parser, action):
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
