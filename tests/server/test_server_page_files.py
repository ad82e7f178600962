"""The chat page without a browser: its files, their policy and hashes, and the fields it offers."""

import graphlib
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution
from support.paths import ROOT
from support.server_process import ServerProcess

pytest.importorskip("msgspec")
pytest.importorskip("starlette")

import msgspec

from bitnet.generation.sampling_fields import SAMPLING_FIELDS
from bitnet.server import schema
from bitnet.server.endpoints.page import page_fields

PAGE = ROOT / "bitnet/server/page"
VENDOR = PAGE / "vendor"
OWN = sorted(p for p in PAGE.iterdir() if p.is_file())
MODULES = [p for p in OWN if p.suffix == ".js"]
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
IMPORT = re.compile(r"""(?:from|import\()\s*["']\./([^"']+)["']""")


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--api-key", "a secret of ours") as one:
        yield one


def imports(path):
    return IMPORT.findall(path.read_text())


# -------------------------------------------------------------------------------------- as served
def test_the_page_and_its_files_need_no_key(server):
    answer = server.get("/")
    assert answer.status == 200 and answer.headers.get_content_type() == "text/html"
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', answer.body.decode())
    assert {"page/main.js", "page/style.css", "page/icon.svg"} <= set(names)
    names += [f"page/{name}" for path in MODULES for name in imports(path)]
    for name in set(names):
        answer = server.get(f"/{name}")
        assert answer.status == 200, name
        assert answer.headers.get_content_type() == TYPES["." + name.rsplit(".")[-1]]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.body == (PAGE.parent / name).read_bytes()
    assert server.get("/v1/models").status == 401


def test_the_policy_lets_nothing_else_run(server):
    policy = server.get("/").headers["content-security-policy"]
    directives = dict(d.strip().partition(" ")[::2] for d in policy.split(";"))
    assert directives == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'",
        "connect-src": "'self'", "img-src": "'self'", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'", "trusted-types": "'none'",
    }  # fmt: skip
    assert server.get("/").headers["referrer-policy"] == "no-referrer"


def test_a_browser_asks_whether_a_file_is_new(server):
    first = server.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = server.get("/page/main.js", **{"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert server.get("/page/main.js", **{"if-none-match": '"another"'}).status == 200


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "../app.py", "..%2fapp.py", "vendor/manifest.json", "vendor/", "", "/main.js"],
)
def test_no_other_file_is_served(server, name):
    assert server.get(f"/page/{name}").status == 404


# -------------------------------------------------------------------------------------- the source
def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    text = (PAGE / "index.html").read_text()
    assert re.findall(r"<script[^>]*>[^<]", text) == [] and "<style" not in text
    assert re.findall(r"\s(?:on\w+|style)=", text) == []
    for path in OWN:
        found = set(re.findall(r"\b(?:https?:)?//[\w.-]+\.\w+", path.read_text()))
        assert found <= {"http://www.w3.org"}, path.name  # the name of SVG


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_text_never_becomes_html_or_code(path):
    banned = (
        r"innerHTML|outerHTML|insertAdjacentHTML|srcdoc|DOMParser|createContextualFragment"
        r"|document\.write|\beval\(|new Function|setTimeout\([\"'`]|setHTML"
    )
    assert not re.search(banned, path.read_text())


def test_modules_import_one_way_and_all_are_used():
    graph = {path.name: {n for n in imports(path) if "/" not in n} for path in MODULES}
    assert set().union(*graph.values()) | {"main.js"} == set(graph)
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names those in a circle
    vendored = {name for path in MODULES for name in imports(path) if "/" in name}
    assert vendored == {f"vendor/{p.name}" for p in VENDOR.glob("*.js")}


def test_files_are_small():
    for path in OWN:
        lines = path.read_text().splitlines()
        assert len(lines) <= 300, path.name
        if path.suffix == ".js":
            assert max(map(len, lines)) <= 100, path.name


class Elements(HTMLParser):
    """The elements of a page: [tag, attributes, text in it]."""

    def __init__(self, text):
        super().__init__()
        self.all, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.all.append(element)
        if tag not in ("meta", "link", "input", "img", "br"):
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data


def test_elements_are_there_and_have_names():
    found = Elements((PAGE / "index.html").read_text()).all
    ids = [a["id"] for _, a, _ in found if "id" in a]
    assert len(set(ids)) == len(ids)
    made = set(page_fields())  # by settings.js
    for path in MODULES:
        for name in re.findall(r'\$\("([\w-]+)"\)', path.read_text()):
            assert name in ids or name in made, f"{path.name}: {name}"
    labels = {a["for"] for tag, a, _ in found if tag == "label"}
    for tag, attributes, text in found:
        if tag == "button":
            assert re.search(r"\w", attributes.get("aria-label") or text), attributes
        if tag in ("input", "textarea", "select"):
            assert attributes["id"] in labels or "aria-label" in attributes


# -------------------------------------------------------------------------------- other people's
def test_vendored_files_are_those_of_the_manifest():
    manifest = json.loads((VENDOR / "manifest.json").read_text())
    listed = {entry["file"]: entry for entry in manifest["files"]}
    assert set(listed) == {p.name for p in VENDOR.glob("*.js")}
    licences = set()
    for name, entry in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == entry["sha256"], name
        for part in (entry, *entry["contains"]):
            assert part["version"] and part["license"] in ("MIT", "BSD-2-Clause", "BSD-3-Clause")
            assert "opyright" in (VENDOR / part["license_file"]).read_text()
            licences.add(part["license_file"])
    assert licences == {p.name for p in VENDOR.glob("*.LICENSE")}


def test_a_wheel_carries_the_page(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files()
    command = build_py(distribution)
    command.finalize_options()
    carried = {
        name
        for package, _, _, names in command.data_files
        if package == "bitnet.server"
        for name in names
    }
    assert carried == {str(p.relative_to(PAGE.parent)) for p in PAGE.rglob("*") if p.is_file()}


# --------------------------------------------------------------------------------------- settings
def test_the_page_offers_the_samplers_of_the_api(server):
    fields = server.get("/page/fields.json").json
    assert fields == page_fields()
    assert {field.name for field in SAMPLING_FIELDS} < set(fields)
    text = (PAGE / "settings.js").read_text()
    offered = re.findall(r"^  (\w+): \[", text, re.M)
    assert sorted(offered) == sorted(fields)


@pytest.mark.parametrize("name", [n for n, f in page_fields().items() if "maximum" in f])
def test_bounds_are_what_the_api_takes(name):
    field = page_fields()[name]
    step = 1 if field["type"] == "integer" else 1e-6
    open_, lower = "exclusiveMinimum" in field, field.get("minimum", field.get("exclusiveMinimum"))
    upper = field["maximum"]

    def takes(value):
        request = {"prompt": "", name: value}
        try:
            msgspec.json.decode(msgspec.json.encode(request), type=schema.TextRequest)
        except msgspec.ValidationError:
            return False
        return True

    assert takes(upper) and takes(lower) is not open_ and takes(lower + step)
    assert not takes(lower - step)
    if upper < 2**63 - 1:  # else it is no number that JSON's readers have
        assert not takes(upper + step)
