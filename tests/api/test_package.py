"""What `import bitnet` brings, shows and says of itself."""

import inspect
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT

import bitnet
from bitnet import FormatError, PoolExhausted


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(bitnet.__file__).parents[1],
    )
    return done.stdout


def test_import_brings_only_what_is_needed():
    """At first nothing but the version; a name that is asked for brings no library of an extra."""
    code = (
        "import sys, bitnet\nprint(bitnet.__version__, {'numpy', 'bitnet.errors'} & {*sys.modules})"
        "\nbitnet.load; print([m for m in ('tokenizers', 'minijinja', 'asyncio', "
        "'concurrent.futures', 'tqdm') if m in sys.modules])"
    )
    assert run(code) == f"{bitnet.__version__} set()\n[]\n"


def test_names_that_were_not_asked_for_yet():
    """dir(), *, wrong names and pickles in a process that has imported nothing else."""
    code = (
        "import bitnet, sys\nassert {*bitnet.__all__} <= {*dir(bitnet)}\n"
        "assert not hasattr(bitnet, 'laod') and 'numpy' not in sys.modules\n"
        "try:\n    from bitnet import laod\nexcept ImportError as error: print(error.name)\n"
        "import pickle; error = pickle.loads(%r); print(error, type(error) is bitnet.ContextFull)\n"
        "from bitnet import *\nprint(all(globals()[name] for name in bitnet.__all__), load)"
    )
    lines = run(code % pickle.dumps(bitnet.ContextFull(0, 11, 10))).splitlines()
    full = "the prompt has 11 tokens, the context 10"
    assert lines[:2] == ["bitnet", f"{full} True"] and lines[2].startswith("True <function load")


def test_several_threads_may_ask_first():
    code = (
        "import threading, bitnet\nfound, start = [], threading.Barrier(8)\n"
        "def ask(name):\n    start.wait(); found.append(getattr(bitnet, name))\n"
        "names = [*bitnet.__all__[:4], 'load', 'Model', 'info', 'MemoryReport']\n"
        "team = [threading.Thread(target=ask, args=(name,)) for name in names]\n"
        "[one.start() for one in team]; [one.join() for one in team]\nprint(len(found))"
    )
    assert run(code) == "8\n"


@pytest.mark.parametrize(
    "name", ["compute.operands", "runtime.pool", "generation.sampling", "api.load", "cli.run"]
)
def test_waiting_of_threads_is_chosen_before_openmp_is_loaded(name):
    """Whichever module is imported first."""
    code = (
        "import os, sys\n"
        "class Watch:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'bitnet.compute.ops': print(os.environ.get('GOMP_SPINCOUNT'))\n"
        f"sys.meta_path.insert(0, Watch())\nimport bitnet.{name}\nimport bitnet\nbitnet.load\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    assert run(code) == "3000\nNone\n"


def test_names():
    assert all(hasattr(bitnet, name) for name in bitnet.__all__)
    parameters = inspect.signature(bitnet.load).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(bare)) == (
        "(path=None, *, threads=None, memory_limit=None, context=None, "
        "kv_dtype='f16', mapping='map', slots=1, layout='128x32', "
        "prefix_cache=True, prefix_folder=None, prefix_folder_limit='4GiB', "
        "chat_template=None, activations=None, speculative=None, snapshots=4, "
        "progress=None)"
    )
    assert issubclass(FormatError, ValueError) and issubclass(PoolExhausted, MemoryError)


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project.get("version", bitnet.__version__) == bitnet.__version__


def test_info():
    found = bitnet.info()
    assert found["version"] == bitnet.__version__
    assert found["isa"] in found["supported"]
    assert found["threads"] >= 1 and found["isa_reason"] and found["threads_reason"]
