"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
DATA = ROOT / "tests" / "data"
TINY_MODEL = DATA / "bitnet_tiny" / "model.gguf"  # the text and shape of which tests may quote
