"""What MkDocs is told beyond mkdocs.yml: pages made of the program, and links out of docs/."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

SCRIPTS = Path(__file__).parent
ROOT = SCRIPTS.parents[1]
sys.path.insert(0, str(SCRIPTS))

import blocks  # noqa: E402
import command_line  # noqa: E402
import server_fields  # noqa: E402
import svg  # noqa: E402

PROJECT = {  # files of the top folder that are pages: where
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
MADE = {
    "reference/command-line.md": command_line.page,
    "reference/server-fields.md": server_fields.page,
}
DRAWN_CSS = "assets/drawn.css"  # colours of the pictures, in mkdocs.yml too
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]+)?\)")
PICTURE = re.compile(r'<img alt="([^"]*)" src="([^"]*\.svg)"\s*/?>')


def on_files(files, config):
    for uri, make in MADE.items():
        files.append(File.generated(config, uri, content=make()))
    for name, uri in PROJECT.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text("utf-8")))
    schemes = (f'[data-md-color-scheme="{name}"] .drawing' for name in ("default", "slate"))
    files.append(File.generated(config, DRAWN_CSS, content=svg.style(*schemes)))
    return files


def on_page_markdown(markdown, page, config, files):
    markdown = blocks.with_outputs(markdown)
    at = {uri: name for name, uri in PROJECT.items()}.get(page.file.src_uri)
    beside = ROOT if at else (Path(config.docs_dir) / page.file.src_uri).parent

    def uri_of(path):
        """Where a file of docs/ is on the site, None where it is not there."""
        if not path.is_relative_to(config.docs_dir):
            return None
        found = files.get_file_from_path(str(path.relative_to(config.docs_dir)))
        return None if found is None or found.inclusion.is_excluded() else found.src_uri

    def link(match):
        label, target, anchor = match[1], match[2], match[3] or ""
        path = (beside / target).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            return match[0]  # MkDocs says that it leads nowhere, or knows the page
        name = str(path.relative_to(ROOT))
        uri = PROJECT.get(name) or uri_of(path)
        if uri is None:  # a file of the program: its name
            return f"{label} (`{name}`)" if label.strip("`") not in name else f"`{name}`"
        return f"[{label}]({'../' * page.file.src_uri.count('/')}{uri}{anchor})"

    return LINK.sub(link, markdown)


def on_page_content(html, page, config, files):
    """Pictures are part of the page, so that they have the colours of its theme."""

    def inline(match):
        alt, source = match.groups()
        svg = (Path(config.docs_dir) / page.file.src_uri).parent / source
        if not svg.exists():
            return match[0]
        text = re.sub(r"<style>.*?</style>", "", svg.read_text("utf-8"), flags=re.S)
        return f'<figure class="drawn" role="img" aria-label="{alt}">{text}</figure>'

    return PICTURE.sub(inline, html)
