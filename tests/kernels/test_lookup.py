"""Ternary products by tables of sums: the same as by tiles, at every size and extreme."""

import numpy as np
import pytest
from support import reference
from support.guard import guarded

from bitnet.compute import operands, ops


def linear(x, matrices, workspace, n_threads=1, add=False):
    """x W^T + 1 where ``add``, and 7 in the three columns in front, of stacked int8 matrices."""
    batch = operands.Batch(len(x), 1, n_threads, workspace=workspace).rows_only(len(x))
    padded = -(-x.shape[1] // 128) * 128
    quantized = operands.QuantizedActivations(
        guarded(np.zeros((len(x), padded), np.int8)),
        guarded(np.zeros(len(x), np.float32)),
        np.zeros(len(x), np.int32),
    )
    ops.quantize(quantized, operands.Matrix(x), batch)
    parts = [(guarded(reference.pack_i2_s(q)), scales[:, None]) for q, scales in matrices]
    out = np.full((len(x), 3 + sum(len(q) for q, _ in matrices)), 7, np.float32)
    out[:, 3:] = 1
    weights = operands.Linear(parts, x.shape[1])
    ops.linear(operands.Matrix(out), weights, quantized, batch, add, 3)
    return out


def workspace(n_threads):
    """What threads work in, filled with what was there before; None where nothing is needed."""
    n_bytes = ops.workspace_bytes(256)
    return guarded(np.full((n_threads, n_bytes), 0x55, np.uint8)) if n_bytes else None


@pytest.mark.parametrize("n_tokens", [8, 9, 16, 17, 24, 25, 70])
@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize(
    "n_rows, n_cols",
    [((256,), 128), ((300, 257), 384), ((1537,), 1000), ((2600, 640, 640), 256), ((260,), 4000)],
)
def test_the_same_as_by_tiles(isa, n_rows, n_cols, n_threads, n_tokens):
    r = np.random.default_rng((n_cols, n_tokens))
    matrices = [
        (
            r.integers(-1, 2, (n, n_cols)).astype(np.int8),
            r.random(n if i == 0 else 1).astype(np.float32),
        )
        for i, n in enumerate(n_rows)
    ]
    x = r.standard_normal((n_tokens, n_cols)).astype(np.float32)
    add = bool(n_tokens % 2)
    got = linear(x, matrices, workspace(n_threads), n_threads, add)
    want = linear(x, matrices, None, add=add)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("weight", [1, 0, -1])
@pytest.mark.parametrize("activation", [127, -127])
@pytest.mark.parametrize("n_cols", [8192, 6912, 128 * 33])
def test_the_largest_sums_are_exact(isa, weight, activation, n_cols):
    q = np.full((256, n_cols), weight, np.int8)
    x = np.full((16, n_cols), activation, np.float32)
    got = linear(x, [(q, np.ones(1, np.float32))], workspace(1))
    assert (got[:, 3:] == weight * activation * n_cols).all()


def test_tables_are_used(isa):
    """Without them what was in the workspace stays."""
    memory = workspace(1)
    if memory is None:
        pytest.skip("this instruction set multiplies as fast")
    q = np.ones((256, 128), np.int8)
    for n_tokens, used in ((8, False), (9, True), (16, True)):
        memory[:] = 0x55
        linear(np.ones((n_tokens, 128), np.float32), [(q, np.ones(1, np.float32))], memory)
        assert (memory != 0x55).any() == used
    memory[:] = 0x55
    few = [(q, np.ones(1, np.float32)), (q[:255], np.ones(1, np.float32))]
    linear(np.ones((16, 128), np.float32), few, memory)
    assert (memory == 0x55).all()
