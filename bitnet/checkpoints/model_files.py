"""Which files are a model, of a folder or of a repository of the hub: safetensors with what belongs
to them, or a GGUF."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import FormatError
from ..formats.gguf_parts import part_names
from ..formats.safetensors import INDEX, SINGLE

CONFIG = "config.json"


def has_safetensors(names: Iterable[str]) -> bool:
    """Whether a model of safetensors is among the names."""
    return CONFIG in names and (SINGLE in names or INDEX in names)


def ggufs(names: Iterable[str]) -> list[list[str]]:
    """The GGUF models among the names, each with the names of all its parts, here or not."""
    models = {}
    for name in sorted(names):
        if name.endswith(".gguf"):
            parts = part_names(name) or [name]
            models[parts[0]] = parts
    return list(models.values())


def preferred(models: Sequence[list[str]]) -> list[str] | None:
    """The GGUF model that is meant if no one says which: the only one, or the only one in I2_S."""
    for some in ([m for m in models if "i2_s" in m[0].lower()], models):
        if len(some) == 1:
            return some[0]
    return None


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
    chosen = preferred(models)
    if chosen is None:
        raise FormatError(path, "files", joined([m[0] for m in models]), "one of these by its path")
    return path / next(name for name in chosen if name in names)


def joined(names: Sequence[str]) -> str:
    """Names for a message."""
    shown = ", ".join(names[:20]) or "none"
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
