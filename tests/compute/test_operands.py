"""Operands: which arrays they take, and that they keep them alive."""

import gc
import weakref

import numpy as np
import pytest

from bitnet.compute import operands, ops


class Watched(np.ndarray):
    """An array that a weak reference may be to."""


def refusals():
    """(what is given, the exception) for an operand that wants float32 (n_rows, n_cols)."""
    good = np.zeros((3, 4), np.float32)
    yield good.astype(np.float64), "format 'd' and 8 bytes, not 2 of float32"
    yield good.astype(np.int32), "format 'i' and 4 bytes, not 2 of float32"
    yield good.astype(np.float16), "format 'e' and 2 bytes"
    yield good.astype(">f4"), "format '>f'"
    yield good[0], "array of 1 dimensions"
    yield good[None], "array of 3 dimensions"
    yield good.T, "not C-contiguous"
    yield good[:, ::2], "not C-contiguous"
    yield np.broadcast_to(good, (3, 4)), "read-only"
    yield good.view([("x", "<f4")]), "not 2 of float32"


@pytest.mark.parametrize(("given", "message"), list(refusals()), ids=lambda one: str(one)[:40])
def test_arrays_of_another_kind_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        operands.Matrix(given)


@pytest.mark.parametrize("given", [None, [[1.0]], "text", 3.0])
def test_what_is_no_buffer_is_a_type_error(given):
    with pytest.raises(TypeError):
        operands.Matrix(given)


def test_bytes_are_uint8_and_are_not_written():
    data = bytes(4096)
    assert ops.read_bandwidth(data) > 0
    assert ops.read_bandwidth(memoryview(bytearray(data))) > 0
    with pytest.raises(ValueError, match="not 1 of float32"):
        ops.argmax(data)
    with pytest.raises((BufferError, ValueError)):
        operands.Batch(1, 1).set_workspace(np.frombuffer(data, np.uint8).reshape(1, -1))


def test_read_only_arrays_are_taken_where_nothing_is_written():
    x = np.arange(5, dtype=np.float32)
    x.flags.writeable = False
    assert ops.argmax(x) == 4
    assert ops.sample(x, 1, 0, 1.0) in range(5)
    assert ops.exp(x)[0] == 1
    operands.Norm(x, 1e-5)
    with pytest.raises(ValueError, match="read-only"):
        ops.exp(x, x)


def test_an_operand_keeps_its_array():
    array = np.zeros((2, 3), np.float32).view(Watched)
    seen, matrix = weakref.ref(array), operands.Matrix(array)
    del array
    gc.collect()
    matrix.array()[1, 2] = 7
    assert seen() is not None and seen()[1, 2] == 7
    del matrix
    gc.collect()
    assert seen() is None


def test_an_array_in_use_does_not_change_its_size():
    data = bytearray(16)
    batch = operands.Batch(1, 1, workspace=memoryview(data).cast("B", (1, 16)))
    with pytest.raises(BufferError):
        data.append(0)
    batch.set_workspace(np.zeros((2, 8), np.uint8))
    data.append(0)
    assert (batch.n_workspaces, batch.workspace_bytes) == (2, 8)


def test_arrays_without_items():
    assert operands.Matrix(np.zeros((0, 4), np.float32)).n_cols == 4
    assert operands.Matrix(np.zeros((4, 0), np.float32)).n_rows == 4


def test_scales_are_of_rows_or_of_all():
    codes = np.zeros((5, 32), np.uint8)
    for shape in ((1, 1), (5, 1)):
        linear = operands.Linear([(codes, np.ones(shape, np.float32))] * 2, 128)
        assert (linear.n_rows, linear.n_cols, linear.min_rows) == (10, 128, 5)
    for shape in ((5, 2), (1, 2), (4, 1), (0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"scales {shape[0]} x {shape[1]}"):
            operands.Linear([(codes, np.ones(shape, np.float32))], 128)
    with pytest.raises(ValueError, match="not 2 of float32"):
        operands.Linear([(codes, np.ones(5, np.float32))], 128)
    for n in (0, 5):
        with pytest.raises(ValueError, match="1 to 4"):
            operands.Linear([(codes, np.ones((1, 1), np.float32))] * n, 128)


def test_a_batch_of_nothing_is_refused():
    for sizes in ((0, 1), (1, 0), (1, 1, 0)):
        with pytest.raises(ValueError, match="tokens"):
            operands.Batch(*sizes)
    with pytest.raises(ValueError, match="not 1 of float32"):
        operands.Batch(1, 1, partials=np.zeros(3))
    with pytest.raises(ValueError, match="not 2 of uint8"):
        operands.Batch(1, 1, workspace=np.zeros((1, 3), np.int8))


def test_token_ids_and_ids_are_int32():
    table = operands.QuantizedRows(np.zeros((3, 16), np.uint8), "F32", 4)
    out, batch = operands.Matrix(np.ones((2, 4), np.float32)), operands.Batch(2, 1).rows_only(2)
    ops.embed(out, table, np.array([2, 0], np.int32), batch)
    assert not out.array().any()
    with pytest.raises(ValueError, match="not 1 of int32"):
        ops.embed(out, table, np.array([2, 0], np.int64), batch)
    with pytest.raises(ValueError, match="not 1 of int32"):
        ops.sample(np.zeros(3, np.float32), 1, 0, 1.0, ids=np.array([0], np.uint32))
