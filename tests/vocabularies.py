"""The small vocabulary of tests/data/vocabulary as a Tokenizer, from either of its two forms."""
import json
from pathlib import Path
from types import SimpleNamespace

from bitnet.tokenizer import Tokenizer
from bitnet.source import TokenizerSource

FOLDER = Path(__file__).parent / "data" / "vocabulary"
METADATA = json.loads((FOLDER / "metadata.json").read_text(encoding="utf-8"))
TOKENS = METADATA["tokenizer.ggml.tokens"]
ID = {token: i for i, token in enumerate(TOKENS)}
BOS, END, EOT = (ID[f"<|{name}|>"] for name in ("begin_of_text", "end_of_text", "eot_id"))
CONFIG = SimpleNamespace(bos_token_id=BOS, eos_token_ids=(END,), vocab_size=len(TOKENS))


def from_json(config=CONFIG, **tokenizer_config):
    source = TokenizerSource(
        FOLDER, FOLDER / "tokenizer.json", tokenizer_config=tokenizer_config
    )
    return Tokenizer.from_source(source, config)


def from_metadata(config=CONFIG, **changes):
    """changes: tokenizer.ggml keys; None leaves one out."""
    metadata = METADATA | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return Tokenizer.from_source(TokenizerSource(FOLDER, metadata=metadata), config)
