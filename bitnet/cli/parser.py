"""The reading of a command line: where options may stand, and messages that name options."""

import argparse
import re
from typing import Any

from .commands import did_you_mean


class Parser(argparse.ArgumentParser):
    """Options may stand before, between and after the positional arguments; all that follows `--`
    is positional."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **keywords
        )

    def read(self, argv: list[str], n_args: tuple[int, int]) -> argparse.Namespace:
        """Parse ``argv``. ``args.positionals``: the arguments that belong to no option; n_args: the
        minimum and maximum of how many there may be. ``args.parser``: this one.

        A command that takes -m gets it as the first of the positionals.
        """
        self.add_argument("positionals", nargs="*", help=argparse.SUPPRESS)
        end = argv.index("--") if "--" in argv else len(argv)
        args, unknown = self.parse_known_intermixed_args(argv[:end])
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"{name}: no such option{did_you_mean(name, self.option_strings())}")
        args.positionals += argv[end + 1 :]
        if getattr(args, "model", None) is not None:
            args.positionals.insert(0, args.model)
        lower, upper = n_args
        if not lower <= len(args.positionals) <= upper:
            expected = str(upper) if lower == upper else f"{lower} to {upper}"
            self.error(f"{len(args.positionals)} arguments given, {expected} expected")
        args.parser = self
        return args

    def option_strings(self) -> list[str]:
        """Every option, long names first."""
        names = [name for action in self._actions for name in action.option_strings]
        return sorted(names, key=lambda name: not name.startswith("--"))

    def choices_of(self) -> dict[str, list[str]]:
        """{option: the values it takes}; none where they are not listed."""
        return {
            name: [str(choice) for choice in action.choices or ()]
            for action in self._actions
            for name in action.option_strings
        }

    def in_options(self, message: str) -> str:
        """A message of the engine, with options in place of the keywords that they stand for.

        `max_tokens: 0 (...)` and `context=512 and kv_dtype='int8'` are what Python is told.
        """
        options = {
            action.dest: next(name for name in action.option_strings if name.startswith("--"))
            for action in self._actions
            if any(name.startswith("--") for name in action.option_strings)
        }

        def given(match: re.Match[str]) -> str:
            name, value = match["name"], match["text"] or match["bare"]
            return f"{options[name]} {value}" if name in options else match[0]

        lead = re.match(r"(\w+)(?=[:\[])", message)
        if lead and lead[1] in options:
            message = options[lead[1]] + message[lead.end() :]
        return re.sub(
            r"\b(?P<name>[a-z_]+)=(?:'(?P<text>[^']*)'|(?P<bare>[\w.+-]+))", given, message
        )
