"""The blocks of code in the pages: which are run, and what one of them prints.

A block of `sh` or `python` is run by tests/test_docs_blocks.py unless a comment stands above it:

    <!-- not run: REASON -->

with a reason of REASONS. Behind a block of `sh` a comment `<!-- output -->` stands for what it
prints; the site shows that, made when it is built.
"""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REASONS = {
    "hub": "asks the Hugging Face hub",
    "checkpoint": "needs a published checkpoint: a real size, or text that makes sense",
    "peer": "needs another engine or a client that this project does not install",
    "install": "installs packages",
    "system": "needs root, a container engine or a server's own configuration",
    "minutes": "takes minutes, or needs a file of gigabytes",
}
FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>[\w ]+) -->\n *)?"
    r"```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^ *```$",
    re.M | re.S,
)
OUTPUT = re.compile(r"^( *)```sh\n(?P<body>(?:(?! *```).*\n)*) *```\n\n? *<!-- output -->$", re.M)


@dataclass(frozen=True)
class Block:
    """line: of the fence in the page, from 1. reason: why it is not run, None if it is."""

    line: int
    language: str
    text: str
    reason: str | None


def of(text):
    """The Blocks of sh and Python in a page."""
    found = []
    for match in FENCE.finditer(text):
        if match["language"] in ("sh", "python"):
            line = 1 + text.count("\n", 0, match.start("language"))
            body = textwrap.dedent(match["body"])
            found.append(Block(line, match["language"], body, match["reason"]))
    return found


def with_outputs(text):
    """A page with what its blocks print in the place of `<!-- output -->`."""

    def shown(match):
        indent = match[1]
        output = textwrap.indent(f"```text\n{printed(match['body'])}```", indent)
        return match[0].rpartition("<!--")[0].rstrip(" ") + output

    return OUTPUT.sub(shown, text)


def command_on_path(folder):
    """The environment in which `bitnet`, and the `python` that has it, are those of this checkout,
    by files in folder."""
    for name, words in ("bitnet", " -m bitnet"), ("python", ""):
        path = Path(folder) / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        path.chmod(0o755)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def printed(script):
    """What a block of sh prints, in an empty folder; CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", textwrap.dedent(script)],
            cwd=folder,
            env=command_on_path(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return done.stdout.rstrip("\n") + "\n"
