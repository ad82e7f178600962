"""A sequence on disk: its tokens and its state, in a GGUF file that says whose they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..formats import gguf
from ..formats.atomic_write import PRIVATE
from ..models.sequence_state import Bytes, SequenceState, StoredTensor

ARCHITECTURE = "bitnet-session"
# Of the fingerprint; files without one are of 0.1.0, which saw four rows of a tensor.
VERSION = 2
# Of a dtype whose pages lie otherwise than they did: in int8 numbers of a key lie in fours, and
# attention has other bits, so that a sequence would not go on as it began.
VERSIONS = {"int8": 3}

FilePath = str | os.PathLike[str]
Tokens = Sequence[int] | NDArray[np.integer[Any]]


def save(path: FilePath, token_ids: Tokens, state: SequenceState, fingerprint: str) -> None:
    """Write a sequence; it appears under its name only when complete and on disk, for its owner
    alone.

    token_ids: those the state has seen. fingerprint: of the weights they went through.
    ValueError for a state that has given up its oldest positions.
    """
    if state.start:
        raise ValueError(f"save: the first {state.start} positions are not held any more")
    tokens = np.array(token_ids, np.int32)
    stored = list(zip(state.layout(len(tokens)), state.export(), strict=True))
    metadata = {
        "general.architecture": ARCHITECTURE,
        "session.version": VERSIONS.get(state.dtype, VERSION),
        "session.model": fingerprint,
        "session.dtype": state.dtype,
        "session.length": len(tokens),
        "session.tokens": tokens,
        "session.checksum": _checksum(tokens, (data for _, data in stored)),
    }
    tensors = [
        (tensor.name, (tensor.n_bytes // gguf.n_bytes_of(tensor.type, (1,)),), tensor.type, data)
        for tensor, data in stored
    ]
    gguf.write(path, metadata, tensors, PRIVATE)


def load(path: FilePath, state: SequenceState, fingerprint: str) -> list[int]:
    """Read a sequence into an empty state; returns its token ids.

    FormatError for a file that is damaged, of another model, dtype or shape; ContextFull if the
    state is too small, PoolExhausted if there is no memory. The state is empty then.
    """
    file = gguf.GGUFFile(path)
    tokens = _tokens(file, state.dtype, fingerprint)
    state.reserve(len(tokens))
    try:
        layout = state.layout(len(tokens))
        stored = [_stored(file, tensor) for tensor in layout]
        if len(file.tensors) != len(layout):
            raise FormatError(path, "n_tensors", len(file.tensors), f"{len(layout)} pages")
        _expect(file, "session.checksum", _checksum(tokens, stored), "of its tokens and pages")
        state.import_(len(tokens), stored)
        state.advance(len(tokens))
    except BaseException:
        state.trim(0)
        raise
    token_ids: list[int] = tokens.tolist()
    return token_ids


def tokens_of(path: FilePath, dtype: str, fingerprint: str) -> NDArray[np.int32]:
    """The token ids of a saved sequence, int32 (n,), its state unread. FormatError as load."""
    return _tokens(gguf.GGUFFile(path), dtype, fingerprint)


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(different[0]) if len(different) else n


def _tokens(file: gguf.GGUFFile, dtype: str, fingerprint: str) -> NDArray[np.int32]:
    _expect(file, "general.architecture", ARCHITECTURE, "a file of Session.save")
    _expect(file, "session.dtype", dtype, f"kv_dtype of this model, {dtype}")
    version, wanted = file.metadata.get("session.version", "missing"), VERSIONS.get(dtype, VERSION)
    if type(version) is not int or version != wanted:
        limit = f"{wanted}, of {dtype} keys and values: save it again"
        raise FormatError(file.path, "session.version", version, limit)
    _expect(file, "session.model", fingerprint, "the model it was saved with")
    tokens = file.metadata.get("session.tokens")
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int32 or not len(tokens):
        kind = type(tokens).__name__
        raise FormatError(file.path, "session.tokens", kind, "an array of token ids")
    return tokens


def _expect(file: gguf.GGUFFile, key: str, value: str, limit: str) -> None:
    there = file.metadata.get(key, "missing")
    if not isinstance(there, str) or there != value:
        raise FormatError(file.path, key, there, limit)


def _stored(file: gguf.GGUFFile, expected: StoredTensor) -> Bytes:
    """The bytes of a tensor in the file, if they are of the right type and number."""
    name, stored_type, n_bytes = expected
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type != stored_type or len(tensor.data) != n_bytes:
        there = "missing" if tensor is None else f"{len(tensor.data)} bytes of {tensor.type}"
        raise FormatError(file.path, name, there, f"{n_bytes} bytes of {stored_type}")
    data: Bytes = tensor.data
    return data


def _checksum(tokens: NDArray[Any], parts: Iterable[Bytes]) -> str:
    digest = hashlib.blake2b(tokens.tobytes(), digest_size=16)
    for data in parts:
        digest.update(data.data)
    return digest.hexdigest()
