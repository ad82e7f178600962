"""What words that compute nothing leave unimported: help, completion, the answer to a typo."""

import json
import subprocess
import sys

from bitnet.cli.commands import COMMANDS
from bitnet.cli.completion import SHELLS

HEAVY = [
    "numpy", "bitnet.public", "bitnet.compute", "bitnet.kernels", "bitnet.runtime",
    "bitnet.api.load", "asyncio", "huggingface_hub", "tokenizers", "minijinja",
    "prompt_toolkit", "rich", "matplotlib",
]  # fmt: skip
WORDS = [
    [], ["--help"], ["-h"], ["help"], ["--version"], ["rnu"], ["run", "--no-such-option"],
    *([name, "--help"] for name in COMMANDS),
    *(["help", name] for name in COMMANDS),
    *(["completion", shell] for shell in SHELLS),
]  # fmt: skip
CODE = """
import contextlib, io, json, sys
from bitnet.cli import main
heavy, every = json.loads(sys.argv[1])
for words in every:
    out = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(words)
        except SystemExit as leaving:
            code = leaving.code
    out.seek(0)
    found = [n for n in sys.modules if any(n == m or n.startswith(m + ".") for m in heavy)]
    print(json.dumps([words, code, len(out.read()), found]))
"""


def run(every):
    command = [sys.executable, "-c", CODE, json.dumps([HEAVY, every])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_imports_neither_numpy_nor_compiled_modules():
    shown = run(WORDS)
    assert [words for words, *_ in shown] == WORDS
    for words, code, n_characters, heavy in shown:
        wrong = words in (["rnu"], ["run", "--no-such-option"])
        assert code == (2 if wrong else 0) and n_characters, words
        assert heavy == [], words


def test_a_command_that_computes_does():
    """Else the test above might look for names that nothing has."""
    (_, code, _, heavy) = run([["info"]])[0]
    assert code == 0 and {"numpy", "bitnet.public", "bitnet.compute", "bitnet.runtime"} <= {*heavy}
