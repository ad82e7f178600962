"""The types of tensors in a GGUF file: their names, numbers and blocks, in one table.

The reader and writer of GGUF, the layouts and the operands of the kernels take from here what they
need to know of a type.

To add a type of ternary weights: a row of the table with kind TERNARY, and an entry of
ternary_layouts.LAYOUTS that unpacks its blocks. To add a type of rows, for embeddings and heads: a
row of the table with kind FLOAT_ROWS, a function of float_blocks that dequantizes its blocks, and a
kernel, whose number is in operands.ROW_TYPES. What is read stands in UNREAD no longer.
"""

from typing import NamedTuple

# kinds of types, by what a model keeps in them
FLOAT_ROWS = "rows"  # floats in blocks of a row: embeddings, heads, norms
TERNARY = "ternary"  # weights of linear layers
CODES = "codes"  # integer codes, which are in repacked files and in no model


class GGMLType(NamedTuple):
    """A row is a whole number of blocks, and a block n_values values in n_bytes bytes.

    number: what a GGUF file calls the type. kind: FLOAT_ROWS, TERNARY or CODES.
    """

    name: str
    number: int
    n_values: int
    n_bytes: int
    kind: str


_TABLE = (
    GGMLType("F32", 0, 1, 4, FLOAT_ROWS),
    GGMLType("F16", 1, 1, 2, FLOAT_ROWS),
    GGMLType("BF16", 30, 1, 2, FLOAT_ROWS),
    GGMLType("Q8_0", 8, 32, 34, FLOAT_ROWS),
    GGMLType("Q4_0", 2, 32, 18, FLOAT_ROWS),
    GGMLType("Q4_1", 3, 32, 20, FLOAT_ROWS),
    GGMLType("Q5_0", 6, 32, 22, FLOAT_ROWS),
    GGMLType("Q5_1", 7, 32, 24, FLOAT_ROWS),
    GGMLType("Q4_K", 12, 256, 144, FLOAT_ROWS),
    GGMLType("Q5_K", 13, 256, 176, FLOAT_ROWS),
    GGMLType("Q6_K", 14, 256, 210, FLOAT_ROWS),
    GGMLType("IQ4_NL", 20, 32, 18, FLOAT_ROWS),
    GGMLType("I8", 24, 1, 1, CODES),
    GGMLType("I2_S", 36, 128, 32, TERNARY),
    GGMLType("TQ1_0", 34, 256, 54, TERNARY),
    GGMLType("TQ2_0", 35, 256, 66, TERNARY),
    GGMLType("IQ1_BN", 134, 64, 13, TERNARY),
    GGMLType("IQ2_BN", 135, 64, 16, TERNARY),
    GGMLType("IQ2_BN_R4", 335, 64, 16, TERNARY),
    GGMLType("Q2_0_G64", 42, 64, 18, TERNARY),
    GGMLType("Q2_0_G128", 42, 128, 34, TERNARY),  # told from the other by its size: see gguf.py
    GGMLType("PQ2_0", 142, 128, 34, TERNARY),
    GGMLType("PTQ1_0", 143, 128, 28, TERNARY),
)
TYPES = {type_.name: type_ for type_ in _TABLE}
ROW_TYPES = tuple(name for name, type_ in TYPES.items() if type_.kind == FLOAT_ROWS)
TERNARY_TYPES = tuple(name for name, type_ in TYPES.items() if type_.kind == TERNARY)
FLOAT_TYPES = tuple(name for name in ROW_TYPES if TYPES[name].n_values == 1)  # F32, F16, BF16
# number: type; where two types have one number, the first of them
BY_NUMBER = {type_.number: type_ for type_ in reversed(_TABLE)}

# number: name of a type that is known and not read, for the message that refuses it. Numbers above
# 30 mean different things in different engines.
UNREAD = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    37: "I8_S of bitnet.cpp", 38: "TL1 of bitnet.cpp", 39: "TL2 of bitnet.cpp, or MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
