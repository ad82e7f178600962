"""What `import bitnet` brings, shows and says of itself."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

from support.paths import ROOT

import bitnet
from bitnet import FormatError, PoolExhausted


def test_import_brings_only_what_is_needed():
    code = (
        "import bitnet, sys; print([m for m in ('tokenizers', 'minijinja', 'asyncio', "
        "'concurrent.futures', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(bitnet.__file__).parents[1],
    )
    assert done.stdout == "[]\n"


def test_names():
    assert all(hasattr(bitnet, name) for name in bitnet.__all__)
    parameters = inspect.signature(bitnet.load).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(bare)) == (
        "(path=None, *, threads=None, memory_limit=None, context=None, "
        "kv_dtype='f16', mapping='map', slots=1, layout='128x32', "
        "prefix_cache=True, prefix_folder=None, prefix_folder_limit='4GiB', "
        "chat_template=None, activations=None, speculative=None, snapshots=4)"
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
