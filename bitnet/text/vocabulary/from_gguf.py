"""The vocabulary in the metadata of a GGUF file: byte-level BPE ("gpt2") or pieces ("llama")."""

from collections.abc import Sequence

import numpy as np

from ...errors import FormatError
from . import byte_level
from .from_hf import make_special, of_pieces, take_marks
from .library import find_ids
from .pieces import Encoder, Pieces
from .vocabulary import (
    ALWAYS_SPECIAL,
    BYTE,
    BYTE_LEVEL_MODEL,
    BYTE_OF,
    CONTROL,
    MAX_SHRINKING,
    NORMAL,
    OUTPUT_ONLY,
    PIECES_MODEL,
    TEMPLATE_KEY,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    bos_eos_ids,
    byte_of,
    checked_template,
    end_ids,
    marks_among,
)

# Keys of ours, as GGUF has none: the normalizer that a tokenizer.json had, "NFC" or missing; ids of
# the special tokens that take the white space before, or behind them.
NORMALIZER_KEY = "tokenizer.bitnet.normalizer"
STRIP_KEYS = ("tokenizer.bitnet.lstrip", "tokenizer.bitnet.rstrip")


class Fields:
    """The tokenizer.ggml keys of a file, each of the type it must have."""

    def __init__(self, path, metadata):
        self.path, self.metadata = path, metadata

    def error(self, name, value, limit):
        return FormatError(self.path, f"tokenizer.ggml.{name}", value, limit)

    def get(self, name, type_, default=None):
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if value is not default and not isinstance(value, type_):
            raise self.error(name, type(value).__name__, type_.__name__)
        return value

    def strings(self, name):
        """The list of an array of strings, None where there is none."""
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        if value is None or isinstance(value, list):
            return value
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.error(name, type(value).__name__, "an array of strings")
        return list(value)

    def numbers(self, name, n, default=None):
        """The array of n numbers; default, where it is missing, or else it is required."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if value is None:
            raise self.error(name, "missing", "required")
        value = np.asarray(value)
        if value.ndim != 1 or value.dtype.kind not in "iuf" or len(value) != n:
            raise self.error(name, f"{len(np.atleast_1d(value))} values", f"{n} numbers")
        return value.copy()


def from_metadata(path, metadata, config):
    """The Vocabulary of the tokenizer.* keys of a file; tokenizer.ggml.pre is always there."""
    fields = Fields(path, metadata)
    model = fields.get("model", str)
    if model not in (BYTE_LEVEL_MODEL, PIECES_MODEL):
        limit = f"{BYTE_LEVEL_MODEL} (byte-level BPE) or {PIECES_MODEL} (SentencePiece)"
        raise fields.error("model", model, limit)
    tokens = fields.strings("tokens")
    if not tokens:
        raise fields.error("tokens", "missing", "required")
    make = _byte_level if model == BYTE_LEVEL_MODEL else _pieces
    return make(fields, tokens, config)


def affixes(fields, config, adds_bos):
    """(prefix, suffix), see Vocabulary. adds_bos: whether bos is in front if the file is silent."""
    adds_bos, adds_eos = (
        fields.get(name, bool, default)
        for name, default in (("add_bos_token", adds_bos), ("add_eos_token", False))
    )
    eos = fields.get("eos_token_id", int, next(iter(config.eos_token_ids), None))
    bos = config.bos_token_id
    return [bos] * (adds_bos and bos is not None), [eos] * (adds_eos and eos is not None)


def _ends(fields, tokens):
    """The end tokens that only the tokenizer's keys name."""
    stated = [fields.get(f"{name}_token_id", int) for name in ("eot", "eom")]
    return [i for i in stated if i is not None and 0 <= i < len(tokens)]


def _template(fields):
    return checked_template(fields.metadata.get(TEMPLATE_KEY), fields.path)


def repeated(tokens, types):
    """Ids of the tokens whose text is another's, or none at all.

    Published files have such pairs. The first of them is what a text becomes, or the first special
    one, which no text does.
    """
    distinct = set(tokens)
    if len(distinct) == len(tokens) and "" not in distinct:
        return []
    meant = {}
    for i in (*np.flatnonzero(np.isin(types, (CONTROL, UNKNOWN))).tolist(), *range(len(tokens))):
        meant.setdefault(tokens[i], i)
    return [i for i, text in enumerate(tokens) if meant[text] != i or not text]


def _set_apart(tokens, types):
    """Change types: a repeated token is for output alone, or nothing if it is special.

    Gives their ids.
    """
    found = repeated(tokens, types)
    for i in found:
        types[i] = UNUSED if types[i] in (CONTROL, UNKNOWN) else OUTPUT_ONLY
    return found


def strips(fields, tokens):
    """Vocabulary.strips."""
    ids = []
    for key in STRIP_KEYS:
        values = np.asarray(fields.metadata.get(key, np.zeros(0, np.int32)))
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise FormatError(fields.path, key, type(fields.metadata[key]).__name__, "token ids")
        if not ((values >= 0) & (values < len(tokens))).all():
            outside = int(values[np.argmin((values >= 0) & (values < len(tokens)))])
            raise FormatError(fields.path, key, outside, f"ids below {len(tokens)}")
        ids.append(set(values.tolist()))
    left, right = ids
    return {tokens[i]: (i in left, i in right) for i in sorted(left | right)}


# byte-level BPE -----------------------------------------------------------------------------------


def _byte_level(fields, tokens, config):
    split = byte_level_split(fields)
    merges = fields.strings("merges")
    if merges is None:
        raise fields.error("merges", "missing", "required")
    types = byte_level_types(fields, tokens, merges, config)
    apart = _set_apart(tokens, types)
    special = {tokens[i]: int(i) for i in np.flatnonzero(np.isin(types, (CONTROL, UNKNOWN)))}
    added = {tokens[i]: int(i) for i in np.flatnonzero(types == USER_DEFINED)}
    template = _template(fields)
    marks = marks_among(added, template, fields.path)
    # A space cannot occur in the alphabet of bytes, so no text spells these tokens' entries.
    unspelled = {*special.values(), *marks.values()}
    unspelled.update(np.flatnonzero(np.isin(types, (UNUSED, OUTPUT_ONLY))).tolist())
    ids = {f" {i} {text}" if i in unspelled else text: i for i, text in enumerate(tokens)}
    if apart:  # what was in their place before may be missing, and merges still lead to it
        merges = [m for m in merges if ids.keys() >= {m.replace(" ", ""), *m.split(" ")}]
    encoder = byte_level.encoder(fields.path, ids, merges, *split)
    add_tokens(encoder, tokens, [i for text, i in added.items() if text not in marks], types, {})
    adds_bos = byte_level.PRE_TOKENIZERS[fields.get("pre", str)][2]
    prefix, suffix = affixes(fields, config, adds_bos)
    texts = {i: None if types[i] == UNUSED else tokens[i] for i in unspelled}
    longest = max(map(len, tokens)) * (1 if split[2] is None else MAX_SHRINKING)
    find = find_ids(fields.path, encoder)
    return Vocabulary(
        encode=lambda text, begins: find(text),
        token=lambda i: texts[i] if i in texts else encoder.id_to_token(i),
        longest=lambda: longest,
        special=special,
        prefix=prefix,
        suffix=suffix,
        byte_level=True,
        drops_space=False,
        bos_id=config.bos_token_id,
        eos_ids=end_ids(special, config, _ends(fields, tokens)),
        chat_template=template,
        marks=marks,
        verbatim=frozenset(added.values()),
        strips=strips(fields, tokens),
    )


def byte_level_split(fields):
    """(words, ignore_merges, normalizer) of byte_level.encoder."""
    pre = fields.get("pre", str)
    if pre not in byte_level.PRE_TOKENIZERS:
        raise fields.error("pre", pre, f"one of {', '.join(byte_level.PRE_TOKENIZERS)}")
    normalizer = fields.metadata.get(NORMALIZER_KEY)
    if normalizer not in (None, "NFC"):
        raise FormatError(fields.path, NORMALIZER_KEY, normalizer, "NFC")
    words, ignore_merges, _ = byte_level.PRE_TOKENIZERS[pre]
    return words, ignore_merges, normalizer


def byte_level_types(fields, tokens, merges, config):
    """The type of each token, int (n_tokens,).

    The begin and end tokens are special, unless they are words: some models end at a blank line.
    """
    types = fields.numbers("token_type", len(tokens), np.full(len(tokens), NORMAL))
    known = {i for i in np.flatnonzero(types == USER_DEFINED) if tokens[i] in ALWAYS_SPECIAL}
    bos_eos = {i for i in bos_eos_ids(config) if i < len(tokens)}
    if any(types[i] == NORMAL for i in bos_eos):
        spelled = BYTE_OF.keys() | {merge.replace(" ", "") for merge in merges}
        bos_eos = {i for i in bos_eos if tokens[i] not in spelled}
    types[[*known, *bos_eos]] = CONTROL
    return types


def add_tokens(encoder, tokens, ids, types, strips):
    """Add tokens to the encoder, which then finds them in any text. strips: see Vocabulary."""
    from tokenizers import AddedToken

    made = []
    for i in ids:
        left, right = strips.get(tokens[i], (False, False))
        is_special = bool(types[i] != USER_DEFINED)
        made.append(
            AddedToken(tokens[i], normalized=False, special=is_special, lstrip=left, rstrip=right)
        )
    encoder.add_tokens(made)


# SentencePiece ------------------------------------------------------------------------------------


def _pieces(fields, tokens, config):
    pieces = read_pieces(fields, tokens, config)
    template = _template(fields)
    marks = take_marks(pieces, template)
    encoder = Encoder(pieces, {})
    prefix, suffix = affixes(fields, config, True)
    return of_pieces(
        pieces,
        config,
        _ends(fields, tokens),
        encode=lambda text, begins: encoder(text),
        longest=encoder.longest,
        prefix=prefix,
        suffix=suffix,
        chat_template=template,
        marks=marks,
        strips=strips(fields, tokens),
    )


def read_pieces(fields, tokens, config):
    """The Pieces of a file."""
    scores = fields.numbers("scores", len(tokens)).astype(np.float32)
    if not np.isfinite(scores).all():
        i = int(np.argmin(np.isfinite(scores)))
        raise fields.error(f"scores[{i}]", float(scores[i]), "finite")
    types = fields.numbers("token_type", len(tokens))
    for i in np.flatnonzero(types == BYTE):
        if byte_of(tokens[i]) is None:
            raise fields.error(f"tokens[{i}]", tokens[i], "<0x00> to <0xFF>, as of type byte")
    adds_space = fields.get("add_space_prefix", bool, True)
    merges = fields.strings("merges")  # see tokenizer_export.py; llama.cpp passes over them
    if merges is not None:
        merges = byte_level.split_merges(fields.path, merges)
    pieces = Pieces(fields.path, tokens, scores, types, adds_space=adds_space, merges=merges)
    make_special(pieces, config)
    _set_apart(tokens, pieces.types)
    return pieces
