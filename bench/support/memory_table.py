"""The bytes of keys and values for model, context and dtype: the table in docs/memory.md.

`python bench/support/memory_table.py` prints it, `--write` puts it into the document, where
tests/test_memory_docs.py looks whether it is still what the planner says.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

from bitnet.checkpoints.memory_plan import state_bytes
from bitnet.checks import format_bytes
from bitnet.models.registry import ARCHITECTURES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
BEGIN, END = "<!-- bench/support/memory_table.py -->\n", "<!-- end of the table -->\n"
DTYPES = ("f32", "f16", "int8")
CONTEXTS = (1024, 4096, 8192, 32768)
SHAPES = {  # layers, key heads, head_dim
    "bitnet-tiny": (4, 2, 64),
    "bitnet-b1.58-2B-4T": (30, 5, 128),
    "bitnet_b1_58-large": (24, 16, 96),
    "bitnet_b1_58-3B": (26, 32, 100),
    "Llama3-8B-1.58": (32, 8, 128),
    "Falcon3-1B": (18, 4, 256),
    "Falcon3-3B": (22, 4, 256),
    "Falcon3-7B": (28, 4, 256),
    "Falcon3-10B": (40, 4, 256),
}


def config_of(layers, heads, head_dim):
    """As much of a ModelConfig as keys and values depend on."""
    return SimpleNamespace(
        arch=ARCHITECTURES["llama"],
        num_hidden_layers=layers,
        num_key_value_heads=heads,
        head_dim=head_dim,
    )


def table():
    """Lines of Markdown: of each model and dtype the bytes a sequence takes, whole pages of 128."""
    yield "| model | KV dtype | " + " | ".join(f"{n:,} tokens" for n in CONTEXTS) + " |\n"
    yield "|---|---|" + "---:|" * len(CONTEXTS) + "\n"
    for model, (layers, heads, head_dim) in SHAPES.items():
        config = config_of(layers, heads, head_dim)
        for dtype in DTYPES:
            sizes = [format_bytes(state_bytes(config, n, dtype)) for n in CONTEXTS]
            yield f"| {model} | {dtype} | {' | '.join(sizes)} |\n"


def parts(text):
    """What stands before the table in a document, the table, and what stands behind."""
    before, rest = text.split(BEGIN)
    inside, after = rest.split(END)
    return before, inside, after


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    made = "".join(table())
    if parser.parse_args().write:
        before, _, after = parts(DOCUMENT.read_text("utf-8"))
        DOCUMENT.write_text(before + BEGIN + made + END + after, "utf-8")
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
