"""Large synthetic models for benchmarks: nobody finds a gigabyte on his disk that he was not asked
about."""

import sys

import pytest

from . import synthetic


class LargeFiles:
    """Writes them, after a question on a terminal, or where --write-large allows it.

    config: pytest's.
    """

    def __init__(self, config):
        self._config = config
        self._may_write = config.getoption("--write-large")

    def write(self, path, *arguments, option="", named=False):
        """synthetic.write of these arguments. named: the user named this path, to be written.

        Skips where it may not be written. option: what else than --write-large helps, for the
        reason."""
        if not (named or self._may_write):
            self._ask(path, synthetic.n_bytes(*arguments), option)
        synthetic.write(path, *arguments)

    def _ask(self, path, n_bytes, option):
        size = f"{n_bytes / 1e9:.1f} GB"
        capture = self._config.pluginmanager.getplugin("capturemanager")
        capture.suspend(in_=True)  # or input() would read from nowhere
        try:
            is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
            answer = input(f"\n{path}: write {size}? [y/N] ") if is_terminal else ""
        except EOFError:
            answer = ""
        finally:
            capture.resume()
        if answer.strip().lower() not in ("y", "yes"):
            allowed = " or ".join(filter(None, (option, "--write-large")))
            pytest.skip(f"needs a file of {size}: {allowed} writes it")
