"""Rotation: weights that were multiplied with a Walsh-Hadamard transform, and want their inputs so.

Stored is W' = (W diag s) H by blocks of columns; y = W' (H (s x)). H is symmetric, of Sylvester's
order, normalised: H H = 1. A row of a rotated embedding is s (H z). Signs s are one vector for each
width of inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rotation:
    """What is rotated in a model, and how.

    block: columns of a transform. signs: {width: float32 (width,) of 1 and -1}, empty where all
    are 1. linears: names of the matrices whose inputs are transformed, lm_head among them; a tied
    head has that name. has_embedding: whether rows of embed_tokens are to be transformed back.
    groups_values: whether columns of DeltaNet's out_proj are in grouped order of heads, while the
    heads of the other tensors are in tiled order.
    """

    block: int
    signs: Mapping[int, NDArray[np.float32]]
    linears: frozenset[str]
    has_embedding: bool
    groups_values: bool

    def digest(self) -> bytes:
        """A hash of all that it says."""
        facts = f"{self.block} {sorted(self.linears)} {self.has_embedding} {self.groups_values}"
        digest = hashlib.blake2b(facts.encode(), digest_size=16)
        for width, signs in sorted(self.signs.items()):
            digest.update(f" {width} ".encode() + signs.tobytes())
        return digest.digest()
