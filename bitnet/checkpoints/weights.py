"""A model's tensors as arrays the kernels read: mapped from its files, or from its sidecar.

Names are those of HF checkpoints, see source.py.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from ..formats.float_blocks import dequantize
from ..formats.mapped_file import check_map
from ..models import lm_head_screen
from ..runtime import mmap
from . import repack_cache
from .open_checkpoint import open_checkpoint


@dataclass(frozen=True)
class Ternary:
    """A linear layer. codes: uint8 (n_rows, padded(n_cols) // 4) in I2_S, C-contiguous.

    scales: float32 (1,) or (n_rows,), multiply the integer dot product. Code 3 is not looked for
    here, because that would read the whole file.
    """

    codes: np.ndarray
    scales: np.ndarray
    n_rows: int
    n_cols: int
    where: str


@dataclass(frozen=True)
class Rows:
    """An embedding or head as it lies in the file. data: uint8 (n_rows, row_bytes), at any address.

    type: one of formats.floats.ROW_TYPES.
    """

    type: str
    data: np.ndarray
    n_rows: int
    n_cols: int
    where: str

    def dequantize(self, ids):
        """The rows of these ids as float32 (len(ids), n_cols)."""
        return dequantize(self.type, self.data[ids], self.n_cols)


class Weights:
    """The tensors of one model, mapped. Made by open().

    path: of the file or folder. config: ModelConfig. source: the source.Checkpoint it comes from.
    screen: of the head, see lm_head_screen.py, or None: (codes int8 (n_rows, n_cols), float32 bounds).
    """

    def __init__(self, source, ternary, files, screen=None):
        self.path, self.config, self.source = source.path, source.config, source
        self.screen = screen
        self._ternary, self._files, self._fingerprint = ternary, files, None
        self._is_copied = False  # nothing is read from the maps any more

    @property
    def tokenizer_source(self):
        return self.source.tokenizer_source

    def ternary(self, name):
        """The linear layer of this name. Its arrays keep their file mapped, also after close()."""
        return self._ternary[name]

    def rows(self, name):
        """embed_tokens or lm_head, which is the embedding where they are tied."""
        if name == "lm_head":
            return head_rows(self.source)
        return _rows(self.source.floats[name])

    def vector(self, name):
        """A norm's weight as it is applied, float32 (n,); FormatError if not finite."""
        return self.source.vector(name)

    def mappings(self):
        """[(path, address, bytes)] of every mapped file, the sidecar included."""
        return [(file.path, file.data.ctypes.data, file.data.nbytes) for file in self._files]

    def fingerprint(self):
        """A hash of the configuration and of a part of every tensor: the same for the same model,
        however its files are called and whatever layout its linear layers have."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(repr(self.config.arithmetic()).encode(), digest_size=16)
            for name, t in sorted(self._ternary.items()):
                digest.update(f"{name} {t.n_rows} {t.n_cols}".encode() + t.scales.tobytes())
                digest.update(t.codes[:: max(1, t.n_rows // 4)].tobytes())  # 4 rows of each
            for name, tensor in sorted(self.source.floats.items()):
                rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
                data = tensor.data.reshape(rows, -1)[:: max(1, rows // 4)]
                digest.update(f"{name} {tensor.type} {tensor.shape}".encode() + data.tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def check_maps(self):
        """FormatError if one of the files has shrunk: then zeros were read of it."""
        for file in self._files if mmap.n_truncated() and not self._is_copied else ():
            check_map(file.data, file.path)

    def copy_into(self, pool):
        """Replace every map by a copy in a pool (purpose "weights"), which may have huge pages."""

        def copied(data):
            if data.flags.writeable:  # it is in the pool already: repacked without a cache folder
                return data
            copy = pool.array(data.shape, np.uint8, "weights")
            copy[:] = data
            mmap.dontneed(data.ctypes.data, data.nbytes)
            return copy

        for name, t in self._ternary.items():
            self._ternary[name] = replace(t, codes=copied(t.codes))
        if self.screen:
            codes, bounds = (copied(part.view(np.uint8)) for part in self.screen)
            self.screen = codes.view(np.int8), bounds.view(np.float32)
        for name, tensor in self.source.floats.items():
            if len(tensor.shape) == 2:
                self.source.floats[name] = replace(tensor, data=copied(tensor.data))
        self.check_maps()
        self._is_copied = True

    def lock(self):
        """Keep all maps in memory until close. MemoryError where the system refuses."""
        for _, address, n_bytes in self.mappings():
            mmap.lock(address, n_bytes)  # unmapping ends it

    def close(self):
        """Drop the maps; a file stays mapped while arrays handed out of it are alive."""
        self._ternary, self._files, self.screen = {}, [], None
        self.source.ternary, self.source.floats, self.source.files = {}, {}, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def open(path, *, cache=None, pool=None, layout="128x32"):
    """Open an HF folder or a .gguf file; of_source of its open_checkpoint, see there.

    layout: how I2_S tensors lie, see source.LAYOUTS.
    Raises FormatError for anything wrong in the files, OSError if one cannot be opened.
    """
    return of_source(open_checkpoint(path, layout=layout), cache=cache, pool=pool)


def of_source(source, *, cache=None, pool=None, n_threads=1):
    """The Weights of a source.Checkpoint, which they take over.

    cache: the folder for repacked weights, None for the default (see repack_cache.cache_folder), False
    to keep them in memory: in pool, if given (PoolExhausted if they do not fit), else in NumPy's.
    n_threads: to make the screen of a head with.
    """
    ternary, derived = {}, {}
    for name, t in source.ternary.items():
        if t.in_place is None:
            derived[name] = t
        else:
            ternary[name] = Ternary(t.in_place, t.scales(), t.n_rows, t.n_cols, t.tensor.where)
    files, screen, rows = list(source.files), None, head_rows(source)
    if not lm_head_screen.is_worth_it(rows.type, (rows.n_rows, rows.n_cols)):
        rows = None
    if derived or rows:
        made, file, screen = repack_cache.load_or_repack(
            derived, source, cache, pool, rows, n_threads
        )
        for name, (codes, scales) in made.items():
            t = derived[name]
            ternary[name] = Ternary(codes, scales, t.n_rows, t.n_cols, t.tensor.where)
        files += [file] if file else []
    return Weights(source, ternary, files, screen)


def head_rows(source):
    """The Rows of the output matrix of a Checkpoint: the embedding's where they are tied."""
    return _rows(source.floats["embed_tokens" if source.config.tie_word_embeddings else "lm_head"])


def _rows(tensor):
    n_rows, n_cols = tensor.shape
    return Rows(tensor.type, tensor.data.reshape(n_rows, -1), n_rows, n_cols, tensor.where)
