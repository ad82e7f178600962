"""A model's tensors as arrays the kernels read: mapped from its files, or from repacked weights.

Names are those of HF checkpoints, see checkpoint.py.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from ..formats.mapped_file import check_map, release_pages
from ..formats.ternary_layouts import WHOLE_ROWS, Quantization
from ..models import lm_head_screen
from ..runtime import mmap
from ..runtime.pool import Pool
from ..text.vocabulary import TokenizerSource
from . import repack_cache
from .checkpoint import DEFAULT_LAYOUT, Checkpoint, EmbeddingRows, TernaryTensor
from .open_checkpoint import open_checkpoint


@dataclass(frozen=True)
class Ternary:
    """A linear layer. codes: uint8 (n_rows, padded(n_cols) // 4) in I2_S, C-contiguous.

    scales: float32 (n_rows, 1), or (1, 1) where all rows have the same; they multiply the integer
    products. quantization: groups of columns that have a scale of their own. where: file and name
    of the tensor, for messages. Code 3 is not looked for here: that would read the whole file.
    """

    codes: np.ndarray
    scales: np.ndarray
    n_rows: int
    n_cols: int
    where: str
    quantization: Quantization = WHOLE_ROWS


class Weights:
    """The tensors of one model, mapped. Made by open().

    path: of the file or folder. config: ModelConfig. checkpoint: what it comes from.
    screen: of the head, see lm_head_screen.py: (codes int8 (n_rows, n_cols), float32 bounds), or
        None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        ternary: dict[str, Ternary],
        files: Iterable[Any],
        screen: repack_cache.Screen | None = None,
    ) -> None:
        self.path, self.config, self.checkpoint = checkpoint.path, checkpoint.config, checkpoint
        self.screen = screen
        self._ternary, self._files = ternary, list(files)
        self._fingerprint: str | None = None
        self._is_copied = False  # nothing is read from the maps any more

    @property
    def tokenizer_source(self) -> TokenizerSource:
        return self.checkpoint.tokenizer_source

    def ternary(self, name: str) -> Ternary:
        """The linear layer of this name. Its arrays keep their file mapped, also after close()."""
        return self._ternary[name]

    def rows(self, name: str) -> EmbeddingRows:
        """embed_tokens or lm_head, which is the embedding where they are tied."""
        return self.checkpoint.rows(name)

    def vector(self, name: str) -> np.ndarray:
        """A norm's weight as it is applied, float32 (n,); FormatError if not finite."""
        return self.checkpoint.vector(name)

    def mappings(self) -> list[tuple[Path, int, int]]:
        """[(path, address, bytes)] of every mapped file, that of repacked weights included."""
        return [(file.path, file.data.ctypes.data, file.data.nbytes) for file in self._files]

    def fingerprint(self) -> str:
        """A hash of the configuration and of a part of every tensor: the same for the same model,
        however its files are called and whatever layout its linear layers have."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(repr(self.config.arithmetic()).encode(), digest_size=16)
            for name, t in sorted(self._ternary.items()):
                digest.update(f"{name} {t.n_rows} {t.n_cols}".encode() + t.scales.tobytes())
                digest.update(t.codes[:: max(1, t.n_rows // 4)].tobytes())  # 4 rows of each
            for name, tensor in sorted(self.checkpoint.floats.items()):
                rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
                data = tensor.data.reshape(rows, -1)[:: max(1, rows // 4)]
                digest.update(f"{name} {tensor.type} {tensor.shape}".encode() + data.tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def check_maps(self) -> None:
        """FormatError if one of the files has shrunk: then zeros were read of it."""
        for file in self._files if mmap.n_truncated() and not self._is_copied else ():
            check_map(file.data, file.path)

    def copy_into(self, pool: Pool) -> None:
        """Replace every map by a copy in a pool (purpose "weights"), which may have huge pages."""

        def copied(data: np.ndarray) -> np.ndarray:
            if data.flags.writeable:  # it is in the pool already: repacked without a cache folder
                return data
            copy = pool.array(data.shape, np.uint8, "weights")
            copy[:] = data
            release_pages(data)
            return copy

        for name, t in self._ternary.items():
            self._ternary[name] = replace(t, codes=copied(t.codes))
        if self.screen:
            codes, bounds = (copied(part.view(np.uint8)) for part in self.screen)
            self.screen = codes.view(np.int8), bounds.view(np.float32)
        floats = self.checkpoint.floats
        for name, tensor in floats.items():
            if len(tensor.shape) == 2:
                floats[name] = replace(tensor, data=copied(tensor.data))
        self.check_maps()
        self._is_copied = True

    def lock(self) -> None:
        """Keep all maps in memory until close. MemoryError where the system refuses."""
        for _, address, n_bytes in self.mappings():
            mmap.lock(address, n_bytes)  # unmapping ends it

    def close(self) -> None:
        """Drop the maps; a file stays mapped while arrays handed out of it are alive."""
        self._ternary, self._files, self.screen = {}, [], None
        self.checkpoint.ternary, self.checkpoint.floats, self.checkpoint.files = {}, {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    pool: Pool | None = None,
    layout: str = DEFAULT_LAYOUT,
) -> Weights:
    """Open an HF folder or a .gguf file; of_checkpoint of its open_checkpoint, see there.

    layout: how I2_S tensors lie, see checkpoint.I2_S_LAYOUTS.
    Raises FormatError for anything wrong in the files, OSError if one cannot be opened.
    """
    return of_checkpoint(open_checkpoint(path, layout=layout), cache=cache, pool=pool)


def of_checkpoint(
    checkpoint: Checkpoint,
    *,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    pool: Pool | None = None,
    n_threads: int = 1,
) -> Weights:
    """The Weights of a Checkpoint, which they take over.

    cache: the folder for repacked weights, None for the default (see repack_cache.cache_folder),
    False to keep them in memory: in pool, if given (PoolExhausted if they do not fit), else in
    NumPy's. n_threads: to make the screen of a head with.
    """
    ternary, to_repack = {}, {}
    for name, t in checkpoint.ternary.items():
        if t.in_place is None:
            to_repack[name] = t
        else:
            ternary[name] = _bound(t, t.in_place, t.scales())
    files, screen, rows = list(checkpoint.files), None, checkpoint.rows("lm_head")
    is_screened = lm_head_screen.is_worth_it(rows.type, (rows.n_rows, rows.n_cols))
    if to_repack or is_screened:
        repacked, file, screen = repack_cache.load_or_repack(
            to_repack, checkpoint, cache, pool, rows if is_screened else None, n_threads
        )
        for name, (codes, scales) in repacked.items():
            ternary[name] = _bound(to_repack[name], codes, scales)
        files += [file] if file else []
    return Weights(checkpoint, ternary, files, screen)


def _bound(t: TernaryTensor, codes: np.ndarray, scales: np.ndarray) -> Ternary:
    return Ternary(codes, scales, t.n_rows, t.n_cols, t.tensor.where)
