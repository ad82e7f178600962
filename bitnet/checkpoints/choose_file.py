"""Which GGUF of several is meant where nobody says: by the type at the end of its name.

A repository of Ternary-Bonsai holds one model in up to seven files. Those that are as trained are
ranked here; all others (rotated, binary, converted with loss, drafters, image encoders) are never
taken if there is a choice. A name proves nothing: the file's own header decides what is read.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..formats.gguf_parts import part_names

# type at the end of a name: why it is taken. The first of them that is there.
REASONS = {
    "pq2_0": "2-bit codes in groups of 128, read in place",
    "q2_0": "2-bit codes in groups of 128 (by its name), read in place",
    "q2_0_g64": "2-bit codes in groups of 64, read in place; none of 128 is there",
    "ptq1_0": "codes in base 3, repacked at the first load; none of 2 bits is there",
}
ALIASES = {"q2_g64": "q2_0_g64", "q2_0_g128": "q2_0", "q2_g128": "q2_0"}
_TYPE = re.compile(
    r"(?P<stem>.*)[-._](?P<type>pq2_0|ptq1_0|q2(?:_0)?[-_]g(?:64|128)|q2_0)(?:-\d+-of-\d+)?\.gguf",
    re.IGNORECASE | re.DOTALL,
)
# words in the names of files that belong to a model, or of its binary sibling
_OTHERS = {"mmproj", "mtp", "dspark", "draft", "drafter", "q1_0"}


class Choice(NamedTuple):
    """A model of several. parts: names of its files. why: it and no other; "" of the only one, and
    of the only one in I2_S."""

    parts: list[str]
    why: str


def ggufs(names: Iterable[str]) -> list[list[str]]:
    """The GGUF models among the names, each with the names of all its parts, here or not."""
    models = {}
    for name in sorted(names):
        if name.endswith(".gguf"):
            parts = part_names(name) or [name]
            models[parts[0]] = parts
    return list(models.values())


def choose(models: Sequence[list[str]]) -> Choice | None:
    """The GGUF model that is meant: the only one, the only one in I2_S, or of one model in several
    types the best of REASONS. None where names do not tell: also if there is another model."""
    for some in ([m for m in models if "i2_s" in m[0].lower()], models):
        if len(some) == 1:
            return Choice(some[0], "")
    own = [(m, *_split(m[0])) for m in models if not _is_other(m[0])]
    ranked = [entry for entry in own if entry[2]]
    found = {type_: model for model, _, type_ in ranked}
    stem = ranked[0][1] if ranked else ""
    if len({entry[1] for entry in ranked}) != 1 or len(found) != len(ranked):
        return None
    if not all(m[0].lower().startswith(stem) for m, *_ in own):
        return None
    type_ = next(type_ for type_ in REASONS if type_ in found)
    return Choice(found[type_], REASONS[type_])


def instead(name: str, names: Iterable[str]) -> str | None:
    """The file to take in place of one that was named and is not ranked here, None if there is
    none among the names."""
    chosen = None if _is_ranked(name) else choose(ggufs(names))
    return chosen.parts[0] if chosen and chosen.why else None


def advice(path: Path) -> str:
    """What to take in place of a file that was refused, "" where nothing is known."""
    name, beside = path.name, list[str]()
    with contextlib.suppress(OSError):
        beside = [entry.name for entry in path.parent.iterdir()]
    better = instead(name, beside)
    if better is not None and better.isprintable():
        return f"take {better}, beside it"
    if "bonsai" in name.lower() and not _is_ranked(name):
        return "of a Ternary-Bonsai repository take the file that ends in PQ2_0.gguf or Q2_0.gguf"
    return ""


def _is_ranked(name: str) -> bool:
    return bool(_split(name)[1]) and not _is_other(name)


def _is_other(name: str) -> bool:
    return bool(_OTHERS & set(re.split(r"[-./]", name.lower())))


def _split(name: str) -> tuple[str, str]:
    """(what is in front of the type, the type) of a name; the type is "" if it is not ranked."""
    match = _TYPE.fullmatch(name)
    if match is None:
        return name, ""
    type_ = match["type"].lower().replace("-", "_")
    return match["stem"].lower(), ALIASES.get(type_, type_)
