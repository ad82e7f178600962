"""Which files are a model, of a folder or of a repository of the hub: safetensors with what belongs
to them, or a GGUF."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import FormatError
from ..formats.safetensors import INDEX, SINGLE
from .choose_file import choose, ggufs

log = logging.getLogger("bitnet")

CONFIG = "config.json"


def has_safetensors(names: Iterable[str]) -> bool:
    """Whether a model of safetensors is among the names."""
    return CONFIG in names and (SINGLE in names or INDEX in names)


def model_at(path: Path) -> Path:
    """What to read at a path: itself, or the GGUF of a folder without a model of safetensors.

    FormatError for a folder with several of them; one with none is left to who reads it.
    """
    if not path.is_dir():
        return path
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    models = ggufs(names)
    if has_safetensors(names) or not models:
        return path
    chosen = choose(models)
    if chosen is None:
        raise FormatError(path, "files", joined([m[0] for m in models]), "one of these by its path")
    name = next(name for name in chosen.parts if name in names)
    if chosen.why:
        log.warning("%s: %s of %d models: %s", path, name, len(models), chosen.why)
    return path / name


def joined(names: Sequence[str]) -> str:
    """Names for a message."""
    shown = ", ".join(names[:20]) or "none"
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
