"""Names of the hub's models: ORG/NAME[@REVISION][:FILE.gguf], or the address of a page."""

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import FormatError

SYNTAX = "ORG/NAME[@REVISION][:FILE.gguf]"
MAX_REPO = 96  # characters, the hub's own limit
WORD = r"\w(?:[\w.-]*\w)?"
_NAME = re.compile(
    rf"(?P<repo>{WORD}/{WORD})(?:@(?P<revision>{WORD}(?:/{WORD})*))?(?::(?P<file>[^:]+\.gguf))?",
    re.ASCII,
)
# of the hub's site: a model's page, and those of a revision and of a file
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/.+", re.IGNORECASE)
_PATH = re.compile(
    rf"/(?P<repo>{WORD}/{WORD})"
    r"(?:/(?:(?:blob|resolve|raw)/(?P<file_revision>[^/]+)/(?P<file>.+)"
    r"|tree/(?P<revision>[^/]+).*))?/?",
    re.ASCII,
)


class HubReference(NamedTuple):
    """What a name asks for. revision: branch, tag or commit. file: one .gguf, or None."""

    repo: str
    revision: str
    file: str | None


def parse(name: str, revision: str | None = None) -> HubReference:
    """The HubReference of a name; ValueError if it has another form. Nothing is looked up."""
    plain = of_address(name)
    match = _NAME.fullmatch(plain) if len(plain) <= 4 * MAX_REPO else None
    repo = match["repo"] if match else ""
    if match is None or len(repo) > MAX_REPO or re.search(r"\.\.|--|\.git(/|\Z)", repo):
        raise ValueError(f"model: {name!r} ({SYNTAX}; ORG/NAME of {MAX_REPO} characters at most)")
    if revision is None:
        revision = match["revision"] or "main"
    elif match["revision"] or not re.fullmatch(rf"{WORD}(/{WORD})*", revision, re.ASCII):
        raise ValueError(f"revision: {revision!r} (one branch, tag or commit)")
    if ".." in revision:
        raise ValueError(f"revision: {revision!r} (no '..')")
    if match["file"]:
        check_name(match["file"], repo)
    return HubReference(repo, revision, match["file"])


def of_address(name: str) -> str:
    """The name of a model whose page's address this is, or one of its files'; others as they are.

    https://huggingface.co/ORG/NAME/blob/main/FILE.gguf is ORG/NAME:FILE.gguf.
    """
    if not _ADDRESS.fullmatch(name):
        return name
    parts = urlsplit(name if "://" in name else f"https://{name}")
    match = _PATH.fullmatch(parts.path)
    if match is None:
        return name
    revision = unquote(match["revision"] or match["file_revision"] or "main")
    # the viewer of a page has the file behind the question mark
    file = match["file"] or next(iter(parse_qs(parts.query).get("show_file_info", [])), "")
    is_model = file.endswith(".gguf")
    return match["repo"] + f"@{revision}" * (revision != "main") + f":{unquote(file)}" * is_model


def check_name(name: Any, repo: str) -> None:
    """A name from a repository may not lead out of a folder."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable():
        raise FormatError(repo, "file name", name, "a path inside the repository")
