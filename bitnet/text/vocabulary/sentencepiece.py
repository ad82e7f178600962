"""tokenizer.model, the file of SentencePiece, read within bounds and without its library.

It is one protobuf message. A field is a varint, number << 3 | type, and then its value: type 0 a
varint, 1 and 5 eight and four bytes, 2 a length and that many bytes. Numbers and defaults are those
of sentencepiece_model.proto; fields that do not change how text is encoded are passed over.
"""

import os
import struct

import numpy as np

from ...errors import FormatError
from .pieces import Pieces
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, byte_of

MAX_BYTES = 32 << 20  # bytes of the file; Gemma's, of 262,144 pieces, has 4.7 MB
MAX_PIECES = 1 << 20
MAX_PIECE_BYTES = 1024
MAX_SCORE = 1e30  # Llama-2 has -1e9; sums of scores must stay within a float32

# Numbers of fields: of the file, of a piece, of the trainer's settings, of the normalizer's
PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
TEXT, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, SPACE_BEHIND, BYTE_FALLBACK = 3, 24, 35
RULES, CHARSMAP, ADDS_SPACE, REMOVES_SPACES, ESCAPES = 1, 2, 3, 4, 5

_FLOAT = struct.Struct("<f")


def read(path):
    """The Pieces of a file; FormatError if it is damaged, or asks for what is not done here."""
    size = os.stat(path).st_size
    if size > MAX_BYTES:
        raise FormatError(path, "file size", size, f"at most {MAX_BYTES} bytes")
    with open(path, "rb") as file:
        message = _Message(path, file.read(size))
    trainer, normalizer, denormalizer = {}, {}, {}
    texts, scores, types = [], [], []
    settings = {TRAINER: trainer, NORMALIZER: normalizer, DENORMALIZER: denormalizer}
    for number, value in message.fields("file"):
        if number == PIECES:
            message.add_piece(value, texts, scores, types)
        elif number in settings:
            settings[number].update(message.inside(value, f"field {number}").fields("settings"))
    _check_settings(path, trainer, normalizer, denormalizer)
    pieces = Pieces(
        path,
        texts,
        np.array(scores, np.float32),
        np.array(types, np.int32),
        unigram=trainer.get(MODEL_TYPE, 1) == 1,
        byte_fallback=bool(trainer.get(BYTE_FALLBACK, 0)),
        adds_space=bool(normalizer.get(ADDS_SPACE, 1)),
        removes_spaces=bool(normalizer.get(REMOVES_SPACES, 1)),
        spaced_first=True,
    )
    _check_pieces(pieces)
    return pieces


class _Message:
    """The bytes of a message, read front to back."""

    def __init__(self, path, data):
        self.path, self.data = path, data

    def error(self, field, value, limit):
        return FormatError(self.path, field, value, limit)

    def inside(self, value, field):
        if not isinstance(value, bytes):
            raise self.error(field, type(value).__name__, "a message")
        return _Message(self.path, value)

    def fields(self, name):
        """Yield (number, int or bytes)."""
        data, at = self.data, 0
        while at < len(data):
            key, at = self._varint(at, name)
            wire_type = key & 7
            if wire_type == 0:
                value, at = self._varint(at, name)
                yield key >> 3, value
                continue
            if wire_type == 2:
                size, at = self._varint(at, name)
            else:
                size = {1: 8, 5: 4}.get(wire_type)
                if size is None:
                    raise self.error(f"{name}: type of field {key >> 3}", wire_type, "0, 1, 2 or 5")
            if size > len(data) - at:
                limit = f"{len(data) - at} bytes are left"
                raise self.error(f"{name}: size of field {key >> 3}", size, limit)
            yield key >> 3, data[at : at + size]
            at += size

    def _varint(self, at, name):
        value = 0
        for shift in range(0, 70, 7):
            if at == len(self.data):
                raise self.error(f"{name}: number", "ends early", "a whole varint")
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise self.error(f"{name}: number", "more than 10 bytes", "a varint of 64 bits")

    def add_piece(self, value, texts, scores, types):
        i = len(texts)
        if i == MAX_PIECES:
            raise self.error("pieces", f"more than {i}", f"at most {MAX_PIECES}")
        fields = dict(self.inside(value, f"piece {i}").fields(f"piece {i}"))
        text, score = fields.get(TEXT, b""), fields.get(SCORE, bytes(4))
        if not isinstance(text, bytes) or not 0 < len(text) <= MAX_PIECE_BYTES:
            raise self.error(f"piece {i}", text, f"text of 1 to {MAX_PIECE_BYTES} bytes")
        if not isinstance(score, bytes) or len(score) != 4:
            raise self.error(f"piece {i} score", score, "a float")
        try:
            texts.append(text.decode("utf-8"))
        except UnicodeDecodeError:
            raise self.error(f"piece {i}", text, "UTF-8") from None
        type_ = fields.get(TYPE, NORMAL)
        if type_ not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE):
            raise self.error(f"piece {i} type", type_, "1 to 4, or 6")
        scores.append(_FLOAT.unpack(score)[0])
        types.append(type_)


def _check_settings(path, trainer, normalizer, denormalizer):
    """FormatError for settings under which text would not be encoded as the library does it."""
    model_type = trainer.get(MODEL_TYPE, 1)
    if model_type not in (1, 2):
        raise FormatError(path, "model_type", model_type, "1 (unigram) or 2 (BPE)")
    if trainer.get(SPACE_BEHIND, 0):
        raise FormatError(path, "treat_whitespace_as_suffix", "true", "false")
    if not normalizer.get(ESCAPES, 1):
        raise FormatError(path, "escape_whitespaces", "false", "true")
    for field, rules in (("normalizer_spec", normalizer), ("denormalizer_spec", denormalizer)):
        if rules.get(CHARSMAP):
            name = rules.get(RULES, b"")
            shown = name.decode("utf-8", "replace") if isinstance(name, bytes) and name else "rules"
            raise FormatError(path, f"{field} precompiled_charsmap", shown, "identity")


def _check_pieces(pieces):
    small = np.abs(pieces.scores) <= MAX_SCORE
    if not small.all():
        i, limit = int(np.argmin(small)), f"at most {MAX_SCORE}, either way"
        raise FormatError(pieces.path, f"piece {i} score", float(pieces.scores[i]), limit)
    for text, i in pieces.of(BYTE).items():
        if byte_of(text) is None:
            raise FormatError(pieces.path, f"piece {i}", text, "<0x00> to <0xFF>")
    if len(set(pieces.texts)) < len(pieces.texts):
        where = {text: i for i, text in enumerate(pieces.texts)}
        i = next(i for i, text in enumerate(pieces.texts) if where[text] != i)
        raise FormatError(pieces.path, f"piece {i}", pieces.texts[i], "once only")
    own = pieces.of(USER_DEFINED)
    if pieces.unigram and own:
        raise FormatError(pieces.path, "user-defined piece", min(own), "none in a unigram model")
    if len(pieces.of(UNKNOWN)) != 1:
        raise FormatError(pieces.path, "unknown piece", len(pieces.of(UNKNOWN)), "one")
