"""A path to the checkpoint there, whatever its container."""

from pathlib import Path

from .checkpoint import LAYOUTS
from .read_gguf import read_gguf
from .read_hf import read_hf


def open_checkpoint(path, *, layout="128x32", masters=False):
    """The Checkpoint of an HF folder or a .gguf file: headers are read, tensors are not.

    layout: how I2_S tensors lie, one of LAYOUTS. masters: the float linear layers of a folder whose
        configuration does not say so are BitNet's master weights.
    FormatError for anything wrong in the files, OSError if one cannot be opened.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} ({', '.join(LAYOUTS)})")
    path = Path(path)
    return read_hf(path, masters) if path.is_dir() else read_gguf(path, layout)
