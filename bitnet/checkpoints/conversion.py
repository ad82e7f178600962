"""Conversion: the tensors of a checkpoint as another container is to hold them, one at a time.

While they are read, a digest of each is kept, mapped pages are given back and progress is told.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b

import numpy as np

from ..errors import FormatError
from ..formats.float_blocks import F16_MAX, dequantize, quantize
from ..formats.ggml_types import TYPES
from ..formats.group_scales import Steps, canonical_rows
from ..formats.mapped_file import release_pages
from ..formats.ternary_layouts import join_codes
from ..models.rope import row_order
from ..progress import REPORT_EVERY, Progress
from .checkpoint import Checkpoint, Codes, TernaryTensor
from .export_config import ExportSpec

HEAD_TYPES = {"f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K"}  # --head: type of embedding and head
RELEASE_EVERY = 32 << 20  # bytes read between two releases of mapped pages


class Conversion:
    """One conversion and how far it is.

    checkpoint: what is read. spec: what is to be written. head: one of HEAD_TYPES, or None.
    digests: {name: digest of what the result must give back}. scales: {name: float32 (1, 1)}, once
    a tensor was read. notes: sentences for the user.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ExportSpec,
        head: str | None,
        verify: bool,
        progress: Progress | None,
    ) -> None:
        self.checkpoint, self.spec, self.head = checkpoint, spec, head
        self.digests: dict[str, bytes] = {}
        self.scales: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self.verify, self.progress = verify, progress
        self.done, self.doing = 0, "writing"
        self.released, self.reported = 0, 0.0
        self.files, self.total = checkpoint.files, _n_bytes(checkpoint)

    def start_checking(self, result: Checkpoint) -> dict[str, bytes]:
        """From now on the result is read; returns the digests it must have."""
        expected, self.digests = self.digests, {}
        self.doing, self.files, self.total = "checking", result.files, self.done + _n_bytes(result)
        return expected

    def advance(self, name: str, n_bytes: int) -> None:
        """n_bytes of a tensor were read: give their pages back, they would count as ours."""
        self.done += n_bytes
        if self.done - self.released >= RELEASE_EVERY:
            self.released = self.done
            self.release()
        now = time.monotonic()
        is_due = now - self.reported >= REPORT_EVERY or self.done >= self.total
        if self.progress and is_due:
            self.reported = now
            self.progress(f"{self.doing} {name}", self.done, self.total)

    def release(self) -> None:
        """Give mapped pages back to the system: resident memory stays that of one tensor."""
        for file in self.files:
            release_pages(file.data)

    def ternary(self, name: str) -> Codes:
        """The codes of a linear layer, chunks in the order of the target; scales[name] is there
        once the first was taken."""
        t, config = self.checkpoint.ternary[name], self.checkpoint.config
        scales, chunks = t.read()
        if scales.size > 1:
            limit = "one for the tensor, as I2_S and packed HF files hold no others"
            raise FormatError(t.tensor.path, t.tensor.name, f"{scales.size} scales", limit)
        self.scales[name] = scales
        is_moved = config.rope_interleaved != self.spec.config.rope_interleaved
        if is_moved and config.arch.is_rotated(name):
            order = row_order(t.n_rows, config.head_dim, config.rope_interleaved)
            chunks = iter([join_codes(chunks, t.n_rows, t.n_cols)[order]])
        yield from self.watched(name, t, scales, chunks)

    def watched(
        self, name: str, t: TernaryTensor, scales: np.ndarray, chunks: Iterable[np.ndarray]
    ) -> Codes:
        """The chunks of a tensor as they are, while digest and progress are kept."""
        digest, n_bytes, n_rows = blake2b(scales.tobytes()), t.tensor.data.nbytes, 0
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk).data)
            before, n_rows = n_rows, n_rows + len(chunk)
            self.advance(name, n_bytes * n_rows // t.n_rows - n_bytes * before // t.n_rows)
            yield chunk
        self.digests[name] = digest.digest()

    def grouped(self, name: str) -> Steps:
        """Scales of groups and codes of a ternary tensor, in the target's order of rows."""
        t, steps = self.checkpoint.ternary[name], self.checkpoint.steps(name)
        config = self.checkpoint.config
        is_moved = config.rope_interleaved != self.spec.config.rope_interleaved
        if is_moved and config.arch.is_rotated(name):
            order = row_order(t.n_rows, config.head_dim, config.rope_interleaved)
            scales, codes = (np.concatenate(part)[order] for part in zip(*steps, strict=True))
            steps = iter([(scales, codes)])
        yield from self.watched_groups(name, t, steps)

    def watched_groups(self, name: str, t: TernaryTensor, steps: Steps) -> Steps:
        """The steps of a tensor as they are, while digest and progress are kept."""
        digest, n_bytes, n_rows = blake2b(), t.tensor.data.nbytes, 0
        for scales, codes in steps:
            digest.update(canonical_rows(scales, codes).data)
            before, n_rows = n_rows, n_rows + len(codes)
            self.advance(name, n_bytes * n_rows // t.n_rows - n_bytes * before // t.n_rows)
            yield scales, codes
        self.digests[name] = digest.digest()

    def rows(self, name: str, type_name: str) -> Iterator[np.ndarray]:
        """The embedding or head in this type, uint8 (some rows, row_bytes) each."""
        tensor, digest = self.checkpoint.floats[name], blake2b()
        for rows in tensor.row_steps():
            stored = rows
            if tensor.type != type_name:
                stored = quantize(type_name, dequantize(tensor.type, rows, tensor.shape[1]))
            digest.update(np.ascontiguousarray(stored).data)
            self.advance(name, rows.nbytes)
            yield stored
        self.digests[name] = digest.digest()

    def vector(self, name: str) -> np.ndarray:
        """A norm as the target stores it, float32 (n,)."""
        values, config = self.checkpoint.vector(name), self.checkpoint.config
        target, arch = self.spec.config, self.spec.config.arch
        if arch.is_query_norm(name) and target.query_scale != config.query_scale:
            values = values * np.float32(config.query_scale)
        stored = arch.stored_norm(name, values, target.norms_are_offsets)
        applied = arch.applied_norm(name, stored, target.norms_are_offsets)
        self.advance(name, self.checkpoint.floats[name].data.nbytes)
        self.digests[name] = blake2b(applied.tobytes()).digest()
        return stored

    def row_type(self, name: str, kept: Collection[str], default: str) -> str:
        """The type in which the target holds the embedding or head.

        That of --head, else the checkpoint's own if it is one of kept, else the default; F32 where
        values are too large for it, which another pass over the tensor finds out.
        """
        tensor = self.checkpoint.floats[name]
        if self.head is None and tensor.type in kept:
            return tensor.type
        chosen = HEAD_TYPES[self.head] if self.head else default
        n_values = TYPES[chosen].n_values
        if tensor.shape[1] % n_values:
            limit = f"a multiple of {n_values}, for --head {self.head}"
            raise FormatError(tensor.path, f"{tensor.name} columns", tensor.shape[1], limit)
        if tensor.type != chosen and self.peak(name) > F16_MAX:
            chosen = "F32"
        if tensor.type != chosen:
            self.notes.append(f"{name}: {tensor.type} to {chosen}")
        return chosen

    def peak(self, name: str) -> float:
        """The largest |value| of the embedding or head; FormatError if one is not finite."""
        tensor, peak = self.checkpoint.floats[name], 0.0
        self.total += tensor.data.nbytes
        for rows in tensor.row_steps():
            peak = np.maximum(peak, np.abs(dequantize(tensor.type, rows, tensor.shape[1])).max())
            self.advance(name, rows.nbytes)
        if not np.isfinite(peak):  # NaN stays in a maximum
            raise FormatError(tensor.path, tensor.name, "NaN or infinite", "finite weights")
        return peak


def _n_bytes(checkpoint: Checkpoint) -> int:
    tensors = [t.tensor for t in checkpoint.ternary.values()]
    return sum(tensor.data.nbytes for tensor in (*tensors, *checkpoint.floats.values()))
