"""A sequence on disk: its tokens, keys and values, in a GGUF file that says whose they are."""

import hashlib

import numpy as np

from ..errors import FormatError
from ..formats import gguf
from ..runtime.kv_cache import PAGE

ARCHITECTURE = "bitnet-session"
# Of pages in the file, by dtype of the cache. int8 ones end in float32 scales: whole float32s.
TYPES = {"f16": "F16", "f32": "F32", "int8": "F32"}


def save(path, token_ids, cache, fingerprint):
    """Write a sequence; it appears under its name only when complete and on disk.

    token_ids: those the cache holds. fingerprint: of the weights they went through.
    ValueError for a cache that has given up its oldest positions.
    """
    if cache.start:
        raise ValueError(f"save: the first {cache.start} positions are not held any more")
    tokens = np.array(token_ids, np.int32)
    pages = {_name(i, page): cache.export_page(i, page) for i, page in _pages(cache, len(tokens))}
    metadata = {
        "general.architecture": ARCHITECTURE,
        "session.model": fingerprint,
        "session.dtype": cache.dtype,
        "session.length": len(tokens),
        "session.tokens": tokens,
        "session.checksum": _checksum(tokens, pages.values()),
    }
    type_name = TYPES[cache.dtype]
    item = gguf.n_bytes_of(type_name, (1,))
    tensors = [(name, (len(data) // item,), type_name, data) for name, data in pages.items()]
    gguf.write(path, metadata, tensors)


def load(path, cache, fingerprint):
    """Read a sequence into an empty cache; returns its token ids, a list.

    FormatError for a file that is damaged, of another model, dtype or shape; ContextFull if the
    cache is too small, PoolExhausted if there is no memory. The cache is empty then.
    """
    file = gguf.GGUFFile(path)
    tokens = _tokens(file, cache.dtype, fingerprint)
    cache.reserve(len(tokens))
    try:
        pages = list(_pages(cache, len(tokens)))
        stored = [_page(file, cache, *page) for page in pages]
        if len(file.tensors) != len(pages):
            raise FormatError(path, "n_tensors", len(file.tensors), f"{len(pages)} pages")
        _expect(file, "session.checksum", _checksum(tokens, stored), "of its tokens and pages")
        for page, data in zip(pages, stored, strict=True):
            cache.import_page(*page, data)
        cache.advance(len(tokens))
    except BaseException:
        cache.reset()
        raise
    return tokens.tolist()


def tokens_of(path, dtype, fingerprint):
    """The token ids of a saved sequence, int32 (n,), its pages unread. FormatError as load."""
    return _tokens(gguf.GGUFFile(path), dtype, fingerprint)


def common(a, b):
    """How many tokens two sequences begin with alike."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(different[0]) if len(different) else n


def _tokens(file, dtype, fingerprint):
    _expect(file, "general.architecture", ARCHITECTURE, "a file of Session.save")
    _expect(file, "session.model", fingerprint, "the model it was saved with")
    _expect(file, "session.dtype", dtype, f"kv_dtype of this model, {dtype}")
    tokens = file.metadata.get("session.tokens")
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int32 or not len(tokens):
        found = type(tokens).__name__
        raise FormatError(file.path, "session.tokens", found, "an array of token ids")
    return tokens


def _expect(file, key, value, limit):
    found = file.metadata.get(key, "missing")
    if not isinstance(found, str) or found != value:
        raise FormatError(file.path, key, found, limit)


def _pages(cache, length):
    """(layer, page) of every page."""
    return ((i, page) for page in range(-(-length // PAGE)) for i in range(cache.n_layers))


def _name(layer, page):
    return f"layer.{layer}.page.{page}"


def _page(file, cache, layer, page):
    """The bytes of a page in the file, if they are of the right type and number."""
    name, type_name = _name(layer, page), TYPES[cache.dtype]
    tensor, n_bytes = file.tensors.get(name), cache.full_nbytes // cache.n_pages // cache.n_layers
    if tensor is None or tensor.type != type_name or len(tensor.data) != n_bytes:
        found = "missing" if tensor is None else f"{len(tensor.data)} bytes of {tensor.type}"
        raise FormatError(file.path, name, found, f"{n_bytes} bytes of {type_name}")
    return tensor.data


def _checksum(tokens, pages):
    digest = hashlib.blake2b(tokens.tobytes(), digest_size=16)
    for data in pages:
        digest.update(data)
    return digest.hexdigest()
