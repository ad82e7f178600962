"""open_checkpoint(): the Checkpoint at a path, whatever its container."""

import os
from pathlib import Path

from ..checks import check_choice
from ..errors import FormatError
from .checkpoint import DEFAULT_LAYOUT, I2_S_LAYOUTS, Checkpoint
from .choose_file import advice
from .model_files import model_at
from .read_gguf import read_gguf
from .read_hf import read_hf
from .read_rotation import PREFIX as ROTATED


def open_checkpoint(
    path: str | os.PathLike[str], *, layout: str = DEFAULT_LAYOUT, masters: bool = False
) -> Checkpoint:
    """The Checkpoint of an HF folder, a .gguf file or a folder with one: headers are read, tensors
    are not. Any part of a split GGUF stands for all of them.

    layout: how I2_S tensors lie, one of I2_S_LAYOUTS. masters: the float linear layers of a folder
        whose configuration does not say so are BitNet's master weights.
    FormatError for anything wrong in the files, OSError if one cannot be opened.
    """
    check_choice("layout", layout, I2_S_LAYOUTS)
    path = model_at(Path(path))
    if path.is_dir():
        return read_hf(path, masters)
    try:
        return read_gguf(path, layout)
    except FormatError as error:
        if str(error.field).startswith(ROTATED) or not (instead := advice(path)):
            raise
        limit = f"{error.limit}; {instead}"
        raise FormatError(error.path, error.field, error.value, limit) from None
