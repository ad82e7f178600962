"""A model's tensors as arrays the kernels read: mapped from its files, or from repacked weights.

Names are those of HF checkpoints, see checkpoint.py.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from ..errors import FormatError
from ..formats import group_scales
from ..formats.group_scales import GroupedMatrix
from ..formats.mapped_file import check_map, release_pages
from ..formats.pieces import PieceReader
from ..formats.ternary_layouts import WHOLE_ROWS, Quantization
from ..models.rotation import Rotation
from ..progress import Meter, Progress, silent
from ..runtime import mmap
from ..runtime.pool import Pool
from ..text.vocabulary import TokenizerSource
from . import repack_cache
from .checkpoint import DEFAULT_LAYOUT, Checkpoint, EmbeddingRows, TernaryTensor
from .open_checkpoint import open_checkpoint

SAMPLE_ROWS = 64  # rows of a matrix in a fingerprint, as of pieces.py


@dataclass(frozen=True)
class Ternary:
    """A linear layer. codes: uint8 (n_rows, padded(n_cols) // 4) in I2_S, C-contiguous.

    scales: float32 (n_rows, 1), or (1, 1) where all rows have the same; they multiply the integer
    products. quantization: groups of columns that have a scale of their own. path, name: of the
    file and tensor that codes are of, for messages. Code 3 is not looked for here: that would read
    the whole file.
    """

    codes: np.ndarray
    scales: np.ndarray
    n_rows: int
    n_cols: int
    path: Path
    name: str
    quantization: Quantization = WHOLE_ROWS


class Weights:
    """The tensors of one model, mapped. Made by open().

    A ternary tensor is a Ternary or, in a model whose groups of columns have scales of their own
    (has_group_scales), a GroupedMatrix, which rows() may give too.

    path: of the file or folder. config: ModelConfig. checkpoint: what it comes from.
    activation_bits: to which activations are rounded by groups of columns, see compute/grouped.pyx;
        None: 8 bits with one scale a token, where linear layers have one scale a row.
    screen: of the head, see lm_head_screen.py: (codes int8 (n_rows, n_cols), float32 bounds), or
        None. repacked: the path of the repacked file, or None. damage: of one that was there and
        is not used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        ternary: dict[str, Ternary | GroupedMatrix],
        loaded: repack_cache.Loaded | None = None,
        activation_bits: int | None = None,
    ) -> None:
        self.path, self.config, self.checkpoint = checkpoint.path, checkpoint.config, checkpoint
        file, self.screen, self.damage = loaded[1:] if loaded else (None, None, None)
        self.repacked = file.path if file else None
        self._ternary, self._files = ternary, [*checkpoint.files, *([file] if file else [])]
        self.activation_bits = activation_bits
        self._fingerprint: str | None = None
        self._is_copied = False  # nothing is read from the maps any more

    @property
    def tokenizer_source(self) -> TokenizerSource:
        return self.checkpoint.tokenizer_source

    @property
    def rotation(self) -> Rotation | None:
        """What its weights were rotated with, None: they were not."""
        return self.checkpoint.rotation

    @property
    def has_group_scales(self) -> bool:
        """Whether every linear layer is a GroupedMatrix, else every one a Ternary."""
        return self.checkpoint.has_group_scales

    def ternary(self, name: str) -> Ternary | GroupedMatrix:
        """The linear layer of this name. Its arrays keep their file mapped, also after close()."""
        return self._ternary[name]

    def rows(self, name: str) -> EmbeddingRows | GroupedMatrix:
        """embed_tokens or lm_head, which is the embedding where they are tied; or another one of
        an Architecture's rows."""
        table = self._ternary.get(self.checkpoint.table(name))
        return table if isinstance(table, GroupedMatrix) else self.checkpoint.rows(name)

    def vector(self, name: str) -> np.ndarray:
        """A norm's weight as it is applied, or another small tensor: see Checkpoint.vector."""
        return self.checkpoint.vector(name)

    def mappings(self) -> list[tuple[Path, int, int]]:
        """[(path, address, bytes)] of every mapped file, that of repacked weights included."""
        return [(file.path, file.data.ctypes.data, file.data.nbytes) for file in self._files]

    def fingerprint(self) -> str:
        """A hash of the configuration, the rounding of activations and pieces of every tensor: the
        same for the same model, however its files are called and whatever layout its ternary
        tensors have."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(repr(self.config.arithmetic()).encode(), digest_size=16)
            if self.activation_bits:
                digest.update(f"activations of {self.activation_bits} bits".encode())
            if self.rotation is not None:
                digest.update(self.rotation.digest())
            with PieceReader(self._files) as pieces:
                for name, t in sorted(self._ternary.items()):
                    shape = t.n_rows, t.n_cols
                    if isinstance(t, GroupedMatrix):
                        digest.update(f"{name} {shape} groups".encode())
                        digest.update(group_scales.canonical(_sample(t, pieces)))
                        continue
                    digest.update(f"{name} {shape} {pieces.crc(t.codes)}".encode())
                    digest.update(t.scales.tobytes())
                for name, tensor in sorted(self.checkpoint.floats.items()):
                    facts = f"{name} {tensor.type} {tensor.shape} {pieces.crc(tensor.data)}"
                    digest.update(facts.encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def illegal_row(self, matrix: Ternary | GroupedMatrix, row: int) -> FormatError:
        """The error for a row of one of its matrices: a code 3, or an illegal scale or bias."""
        found, limit = f"row {row}: code 3", "codes are 0, 1, 2 for -1, 0, 1"
        if isinstance(matrix, GroupedMatrix):
            try:
                group_scales.check(matrix, slice(row, row + 1))
                found, limit = f"row {row}: illegal when it was read", "a file nobody writes to"
            except ValueError as error:
                found, _, limit = str(error).partition(", limit: ")
            if matrix.type == "Q2_0_G64":
                limit += "; the PQ2_0 file of a Bonsai repository has no others"
        if matrix.path == self.repacked:
            repack_cache.distrust(matrix.path)
            limit += "; a repacked file, which the next load makes again"
        return FormatError(matrix.path, matrix.name, found, limit)

    def check_maps(self) -> None:
        """FormatError if one of the files has shrunk: then zeros were read of it."""
        for file in self._files if mmap.n_truncated() and not self._is_copied else ():
            check_map(file.data, file.path)

    def copy_into(self, pool: Pool, progress: Progress = silent) -> None:
        """Replace every map by a copy in a pool (purpose "weights"), which may have huge pages.

        progress: is told bytes, of about as many as the files have.
        """
        meter = Meter(progress, sum(n_bytes for _, _, n_bytes in self.mappings()))

        def copied(data: np.ndarray) -> np.ndarray:
            if data.flags.writeable:  # it is in the pool already: repacked without a cache folder
                return data
            copy = pool.array(data.shape, np.uint8, "weights")
            copy[:] = data
            release_pages(data)
            meter.add("copying weights", data.nbytes)
            return copy

        for name, t in self._ternary.items():
            if isinstance(t, GroupedMatrix):
                self._ternary[name] = t.with_arrays(copied)
            else:
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
    check_cache: bool = False,
) -> Weights:
    """Open an HF folder or a .gguf file; of_checkpoint of its open_checkpoint, see there.

    layout: how I2_S tensors lie, see checkpoint.I2_S_LAYOUTS.
    Raises FormatError for anything wrong in the files, OSError if one cannot be opened.
    """
    checkpoint = open_checkpoint(path, layout=layout)
    return of_checkpoint(checkpoint, cache=cache, pool=pool, check_cache=check_cache)


def of_checkpoint(
    checkpoint: Checkpoint,
    *,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    pool: Pool | None = None,
    n_threads: int = 1,
    check_cache: bool = False,
    activations: str | None = None,
    progress: Progress = silent,
) -> Weights:
    """The Weights of a Checkpoint, which they take over.

    cache: the folder for repacked weights, None for the default (see repack_cache.cache_folder),
    False to keep them in memory: in pool, if given (PoolExhausted if they do not fit), else in
    NumPy's. n_threads: to make the screen of a head with. check_cache: read all of a repacked file
    and compare its checksums, also where it has not changed since that was done. activations: see
    Checkpoint.activation_bits. progress: is told bytes where weights are repacked.
    """
    if checkpoint.is_undecided():
        found = None if cache is False else repack_cache.find(checkpoint, cache)
        if found is None:
            checkpoint.settle_tables()
    ternary: dict[str, Ternary | GroupedMatrix] = {}
    to_repack = {}
    for name, t in checkpoint.ternary.items():
        if checkpoint.has_group_scales:
            in_place: Ternary | GroupedMatrix | None = t.grouped
        else:
            in_place = None if t.in_place is None else _bound(t, t.in_place, t.scales())
        if in_place is None:
            to_repack[name] = t
        else:
            ternary[name] = in_place
    head, loaded = checkpoint.screened_head(), None
    if to_repack or head:
        loaded = repack_cache.load_or_repack(
            to_repack, checkpoint, cache, pool, head, n_threads, check_cache, progress
        )
        for name, made in loaded.tensors.items():
            path = loaded.file.path if loaded.file else None
            if isinstance(made, GroupedMatrix):
                ternary[name] = made
            else:
                ternary[name] = _bound(to_repack[name], *made, path)
    return Weights(checkpoint, ternary, loaded, checkpoint.activation_bits(activations))


def _sample(matrix: GroupedMatrix, pieces: PieceReader) -> GroupedMatrix:
    """Some rows of a matrix, read without reading ahead."""
    rows = np.unique(np.linspace(0, matrix.n_rows - 1, SAMPLE_ROWS).astype(int))
    return matrix.with_arrays(lambda data: pieces.rows(data, rows))


def _bound(
    t: TernaryTensor, codes: np.ndarray, scales: np.ndarray, repacked: Path | None = None
) -> Ternary:
    """repacked: the path of the file that codes are of, where it is not the checkpoint's."""
    path, name = (repacked, t.name) if repacked else (t.tensor.path, t.tensor.name)
    return Ternary(codes, scales, t.n_rows, t.n_cols, path, name)
