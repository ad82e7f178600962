"""What the documents name is there: files, folders, names in files, headings that links lead to."""

import re

import pytest
from support.paths import ROOT

FOLDERS = ("bitnet", "tests", "bench", "docs", "examples", "train", ".ci")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
# a file, and behind a colon what is in it: models/llama.py:Block
FILE = re.compile(
    r"(?<![\w/.:~$*-])((?:[\w.-]+/)*[\w-]+\.(?:py|pyi|pyx|pxd|pxi|h|md|html|toml))\b(?::([\w.]+\w))?"
)
FOLDER = re.compile(rf"(?<![\w/.:~$-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w/-]*\w)")

# Pages that docs/scripts/hooks.py makes when the site is built, which checks links to them.
MADE = {ROOT / "docs" / "reference" / f"{page}.md" for page in ("command-line", "server-fields")}

FILES = {}  # by name, for what is named without its folder
for folder in FOLDERS:
    for found in (ROOT / folder).rglob("*.*"):
        FILES.setdefault(found.name, []).append(found)


def name(path):
    return str(path.relative_to(ROOT))


def resolve(document, text):
    """The files that a document may mean: beside it, of the checkout, of the package, anywhere."""
    folders = document.parent, ROOT, ROOT / "bitnet"
    beside = [f / text for f in folders if (f / text).is_file() or (f / text).resolve() in MADE]
    return beside[:1] or ([] if "/" in text else FILES.get(text, []))


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_files_and_what_is_in_them(document):
    for text, within in FILE.findall(document.read_text("utf-8")):
        if "NAME" in text:  # of what a reader is to add
            continue
        files = resolve(document, text)
        assert files, text
        for word in within.split(".") if within else ():
            pattern = re.compile(rf"\b{re.escape(word)}\b")
            assert any(pattern.search(file.read_text("utf-8")) for file in files), (text, word)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_folders(document):
    for text in FOLDER.findall(document.read_text("utf-8")):
        assert (ROOT / text).exists() or list(ROOT.glob(text + ".*")), text


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links(document):
    for target, anchor in LINK.findall(document.read_text("utf-8")):
        path = document.parent / target if target else document
        assert path.exists() or path.resolve() in MADE, target
        if anchor and path.exists():
            headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.M)
            assert anchor in map(slug, headings), f"{target}#{anchor}"


def test_the_check_sees_what_is_named(tmp_path):
    """Each kind of name, in running text, code and commands."""
    text = (
        "see `models/llama.py:Block.x`, [t](tests/a.py) and python bench/b.py --x; gone.pxi, a.cpp"
    )
    assert FILE.findall(text) == [
        ("models/llama.py", "Block.x"),
        ("tests/a.py", ""),
        ("bench/b.py", ""),
        ("gone.pxi", ""),
    ]
    assert FOLDER.findall("`bitnet/server/`, tests/kernels and bitnet/x.py") == [
        "bitnet/server",
        "tests/kernels",
        "bitnet/x",
    ]
    document = tmp_path / "x.md"
    assert resolve(document, "gone.pxi") == [] == resolve(document, "models/gone.py")
    assert resolve(document, "models/llama.py") and resolve(document, "llama.py")
