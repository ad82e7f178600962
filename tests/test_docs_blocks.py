"""Every command and Python block of the site's pages runs, on small models.

Where a page has a name of the Hugging Face hub, a small model of the same form stands under it, on
a hub of our own. `model.gguf` is the bundled model. Blocks of sh share a shell for each page, and
its variables are those of the blocks of Python, which share a namespace.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path

import pytest
from support.changed_models import rewritten
from support.command_server import command_server
from support.fake_hub import FakeHub
from support.paths import DATA, ROOT

from bitnet.formats import gguf

sys.path.insert(0, str(ROOT / "docs" / "scripts"))
import blocks

yaml = pytest.importorskip("yaml")
pytest.importorskip("huggingface_hub")
pytest.importorskip("llguidance")
pytest.importorskip("uvicorn")

DOCS = ROOT / "docs"
RUN = {"Home", "Tutorial", "How to", "Explanation"}  # parts of the site; a reference is looked up
PARTS = [*yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]]


def leaves(pages):
    """The paths of a part of the navigation: a file, a list of parts, or parts with names."""
    if isinstance(pages, str):
        return [DOCS / pages]
    entries = pages.values() if isinstance(pages, dict) else pages
    return [path for entry in entries for path in leaves(entry)]


PAGES = [path for part in PARTS if part.keys() <= RUN for path in leaves(part)]
PAGES = sorted(path for path in PAGES if blocks.of(path.read_text("utf-8")))
PORT = "8080"  # in the pages; a free one takes its place
STAND_INS = {  # name on the hub: a small model of the same form
    "microsoft/bitnet-b1.58-2B-4T-gguf": DATA / "gguf_i2_s_bitnet158",
    "microsoft/bitnet-b1.58-2B-4T": DATA / "hf_bitnet_offline",
    "prism-ml/Ternary-Bonsai-1.7B-gguf": DATA / "groups" / "gguf_pq2_0",
    "prism-ml/Ternary-Bonsai-4B-gguf": DATA / "groups" / "gguf_pq2_0",
    "microsoft/bitnet-embedding-0.6b": DATA / "hf_embedding_qwen3",
}
NOT_MODEL = {"meta.json", "reference.npz", "tokenizer_cases.json"}


def bonsai(folder, home):
    """The GGUF in a folder with a template that reads enable_thinking, as Qwen3's do."""
    (source,) = folder.glob("*.gguf")
    template = gguf.GGUFFile(source).metadata["tokenizer.chat_template"]
    changes = {"tokenizer.chat_template": f"{{% if enable_thinking %}}{{% endif %}}{template}"}
    return rewritten(home / "bonsai.gguf", source, **changes)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The environment of the pages: `bitnet` on the path, a hub of stand-ins, own folders."""
    home = tmp_path_factory.mktemp("home")
    with FakeHub() as hub, pytest.MonkeyPatch.context() as patch:
        for i, (name, folder) in enumerate(STAND_INS.items(), 1):
            files = (path for path in folder.rglob("*") if path.is_file())
            wanted = {
                str(p.relative_to(folder)): p.read_bytes() for p in files if p.name not in NOT_MODEL
            }
            if "Bonsai" in name:
                wanted = {"Tiny-PQ2_0.gguf": bonsai(folder, home).read_bytes()}
            hub.add(name, wanted, commit=f"{i:040}")
        for name, value in blocks.command_on_path(home).items():
            patch.setenv(name, value)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "BITNET_MEMORY_LIMIT"):
            patch.delenv(name, raising=False)
        patch.setenv("PROJECT", str(ROOT))  # as a page calls the checkout
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        names = list(STAND_INS)
        program = f"from bitnet.checkpoints import hub\nfor name in {names}: hub.find(name)"
        subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.DEVNULL)
        with command_server(home, os.environ | {}):
            yield home
        hub.shutdown()


class Shell:
    """A bash that runs blocks one after the other and ends at the first error."""

    def __init__(self, folder, log):
        self.variables, self._folder, self._log = folder / ".variables", folder, log
        self._bash = subprocess.Popen(
            ["bash", "-euo", "pipefail"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            text=True,
            start_new_session=True,
        )

    def run(self, text):
        """Run a block; AssertionError with what it said where it fails."""
        script = self._folder / ".block"
        script.write_text(text)
        before = self._log.stat().st_size
        self._bash.stdin.write(
            f'. "{script}" </dev/null >>"{self._log}"\nenv -0 >"{self.variables}"; echo done\n'
        )
        self._bash.stdin.flush()
        if self._bash.stdout.readline() != "done\n":
            said = self._log.read_bytes()[before:].decode(errors="replace")
            raise AssertionError(f"exit status {self._bash.wait()}\n{text}\n{said[-4000:]}")

    def environment(self):
        """The shell's exported variables after the last block."""
        entries = self.variables.read_bytes().decode().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.stdin.close()
        self._bash.stdout.close()
        self._bash.wait()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def run_page(text, name, folder, patch):
    """Run the blocks of a page in a folder; AssertionError names the line of one that fails."""
    patch.chdir(folder)
    text, namespace = text.replace(PORT, free_port()), {"__name__": "__page__"}
    log = folder / ".log"
    log.touch()
    shell = Shell(folder, log)
    try:
        for block in blocks.of(text):
            if block.reason:
                continue
            try:
                if block.language == "sh":
                    shell.run(block.text)
                else:
                    if shell.variables.exists():
                        for variable, value in shell.environment().items():
                            patch.setenv(variable, value)
                    exec(compile(block.text, f"{name}:{block.line}", "exec"), namespace)
            except Exception as error:
                said = error if block.language == "sh" else traceback.format_exc()
                raise AssertionError(f"{name}:{block.line}: {said}") from None
    finally:
        shell.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_blocks_run(page, outside, tmp_path, monkeypatch):
    if "curl" in page.read_text("utf-8") and shutil.which("curl") is None:
        pytest.skip("needs curl")
    shutil.copy(ROOT / "bitnet" / "data" / "model.gguf", tmp_path / "model.gguf")
    shutil.copy(DATA / "heldout.txt", tmp_path / "text.txt")
    run_page(page.read_text("utf-8"), page.name, tmp_path, monkeypatch)


def test_those_that_are_not_run_say_why(capsys):
    """Their number is printed, with the reasons."""
    assert {part for parts in PARTS for part in parts} >= RUN
    found = [block for page in PAGES for block in blocks.of(page.read_text("utf-8"))]
    counts = Counter(block.reason for block in found)
    n_run = counts.pop(None, 0)
    assert set(counts) <= set(blocks.REASONS) and n_run > 3 * counts.total()
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
    with capsys.disabled():
        print(f"\nblocks of the pages: {n_run} run, {counts.total()} not ({reasons})")


def test_a_mark_or_a_language_that_nobody_knows_is_found():
    """So that no block is passed over in silence."""
    for page in PAGES:
        text = page.read_text("utf-8")
        marks = text.count("<!-- not run:")
        assert marks == sum(block.reason is not None for block in blocks.of(text)), page
        for line in text.splitlines():
            if line.lstrip().startswith("```") and line.strip() != "```":
                language = line.strip()[3:].split()[0]
                known = {"sh", "python", "text", "json", "toml", "ini", "nginx", "dockerfile"}
                assert language in known, (page, line)


@pytest.mark.parametrize(
    "text, message",
    [
        ("```sh\ntrue\nfalse\n```\n", r"page:1: exit status 1"),
        ("```sh\nexport A=b\n```\n\n```sh\nbitnet absent\n```\n", r"page:5: .*absent"),
        ("```sh\nfalse | true\n```\n", r"page:1: exit status 1"),
        ("```sh\nexport A=b\n```\n\n```python\nimport os\n\nassert os.environ['A'] == 'c'\n```\n",
         r"page:5: .*AssertionError"),
        ("=== \"tab\"\n\n    ```python\n    1 / 0\n    ```\n", r"page:3: .*ZeroDivisionError"),
    ],
    ids=["sh", "bitnet", "pipe", "python", "in a tab"],
)  # fmt: skip
def test_a_block_that_fails_fails_its_page(text, message, outside, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        run_page(text, "page", tmp_path, monkeypatch)


def test_marked_blocks_are_passed_over(outside, tmp_path, monkeypatch):
    text = "<!-- not run: hub -->\n```sh\nfalse\n```\n\n```sh\ntouch here\n```\n"
    run_page(text, "page", tmp_path, monkeypatch)
    assert (Path(tmp_path) / "here").exists()
    assert [block.reason for block in blocks.of(text)] == ["hub", None]


def test_what_a_block_prints_takes_the_place_of_its_comment(outside):
    text = "a\n\n```sh\necho one; echo two\n```\n\n<!-- output -->\n\nb\n"
    made = blocks.with_outputs(text)
    assert made == "a\n\n```sh\necho one; echo two\n```\n\n```text\none\ntwo\n```\n\nb\n"
