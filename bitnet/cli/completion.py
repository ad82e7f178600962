"""completion: a script that completes commands and options in a shell."""

import argparse

from .commands import COMMANDS

SHELLS = ("bash", "zsh", "fish")
USAGE = "|".join(SHELLS)
N_ARGS = (1, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The script has all words in it: a tab starts no Python. Write it anew after an update."
    )


def main(args: argparse.Namespace) -> int:
    (shell,) = args.positionals
    if shell not in SHELLS:
        args.parser.error(f"{shell!r} is neither of {', '.join(SHELLS)}")
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](), end="")
    return 0


def _options() -> dict[str, dict[str, list[str]]]:
    """{command: {option: values it takes, none where any or no word follows}}."""
    from .command import command  # which imports this module, by name

    found = {name: command(name)[1].choices_of() for name in COMMANDS}
    found["cache"] |= {"list": [], "clear": []}
    found["completion"] |= {name: [] for name in SHELLS}
    return found


def _bash() -> str:
    words, values = [], []
    for name, choices in _options().items():
        words.append(f'        {name}) words="{" ".join(choices)}" ;;\n')
        for option, allowed in choices.items():
            if allowed:
                values.append(f'        {name}:{option}) words="{" ".join(allowed)}" ;;\n')
    return f"""# bash completion of bitnet
_bitnet() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} help" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}:$before" in
        help:*) words="{" ".join(COMMANDS)}" ;;
{"".join(values)}    esac
    [ -n "$words" ] || case "${{COMP_WORDS[1]}}" in
{"".join(words)}    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _bitnet bitnet
"""


def _zsh() -> str:
    return f"""#compdef bitnet
# zsh completion of bitnet, by the words of bash's
autoload -U +X bashcompinit && bashcompinit
{_bash()}"""


def _fish() -> str:
    lines = ["# fish completion of bitnet\n"]
    first = "__fish_use_subcommand"
    for name, about in COMMANDS.items():
        lines.append(f"complete -c bitnet -f -n {first} -a {name} -d {_quoted(about)}\n")
    lines.append(f"complete -c bitnet -f -n {first} -a help\n")
    for name, choices in _options().items():
        when = f"complete -c bitnet -n '__fish_seen_subcommand_from {name}'"
        for option, allowed in choices.items():
            kind = "-l" if option.startswith("--") else "-s" if option.startswith("-") else "-a"
            follows = f" -x -a {_quoted(' '.join(allowed))}" if allowed else ""
            lines.append(f"{when} {kind} {option.lstrip('-')}{follows}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """Text as one word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
