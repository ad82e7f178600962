"""Modules of bench/, whose figures tests hold against smaller runs."""

import importlib.util

from support.paths import DATA, ROOT

TEXT = DATA / "heldout.txt"  # Ruth, which the model was not trained on


def bench(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / "support" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
