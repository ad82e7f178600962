"""Small vocabularies: that of tests/data/vocabulary in its two forms, and any tokenizer.model."""

import json
import struct
from types import SimpleNamespace

from support.paths import DATA

from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import TokenizerSource

FOLDER = DATA / "vocabulary"
METADATA = json.loads((FOLDER / "metadata.json").read_text(encoding="utf-8"))
TOKENS = METADATA["tokenizer.ggml.tokens"]
ID = {token: i for i, token in enumerate(TOKENS)}
BOS, END, EOT = (ID[f"<|{name}|>"] for name in ("begin_of_text", "end_of_text", "eot_id"))
CONFIG = SimpleNamespace(
    bos_token_id=BOS, eos_token_ids=(END,), vocab_size=len(TOKENS), max_position_embeddings=99
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]


def from_json(config=CONFIG, **tokenizer_config):
    source = TokenizerSource(FOLDER, FOLDER / "tokenizer.json", tokenizer_config=tokenizer_config)
    return Tokenizer.from_source(source, config)


def from_metadata(config=CONFIG, **changes):
    """changes: tokenizer.ggml keys; None leaves one out."""
    metadata = METADATA | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return Tokenizer.from_source(TokenizerSource(FOLDER, metadata=metadata), config)


# tokenizer.model ----------------------------------------------------------------------------------


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, value):
    """One field of a protobuf message: of a whole number, a float, or anything that has bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text, score=0.0, kind=NORMAL):
    return field(1, field(1, text) + field(2, score) + field(3, kind))


def sentencepiece_model(pieces, unigram=False, bytes=True, space=True, removes=False, rules=b""):
    """The bytes of a tokenizer.model. pieces: [(text, score, type)]."""
    trainer = field(3, 1 if unigram else 2) + field(35, int(bytes))
    normalizer = field(1, "nmt_nfkc") + field(2, rules) if rules else b""
    normalizer += field(3, int(space)) + field(4, int(removes))
    return b"".join(piece(*p) for p in pieces) + field(2, trainer) + field(3, normalizer)
