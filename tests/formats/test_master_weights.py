"""Ternary codes of float weights: as transformers quantises masters, and as they were made once."""

import numpy as np
import pytest

from bitnet.formats import master_weights, tensor


def random_codes(n_rows, n_cols, seed=0):
    return np.random.default_rng(seed).integers(0, 3, (n_rows, n_cols), dtype=np.uint8)


def joined(chunks):
    return np.concatenate([chunk.copy() for chunk in chunks])


def test_masters_as_transformers_quantises_them(monkeypatch):
    monkeypatch.setattr(tensor, "STEP_WEIGHTS", 1000)
    weights = np.random.default_rng(3).standard_normal((40, 200)).astype(np.float32)
    data = weights.view(np.uint8).reshape(40, -1)
    mean = master_weights.absmean("F32", data, 200)
    assert mean.dtype == np.float32
    assert abs(mean - np.abs(weights.astype(np.float64)).mean()) <= np.spacing(mean) / 2
    codes = joined(master_weights.codes_masters("F32", data, 200, mean))
    expected = np.clip(np.rint(weights * (np.float32(1) / mean)), -1, 1) + 1
    assert codes.dtype == np.uint8 and (codes == expected).all()


def test_masters_round_half_to_even():
    weights = np.array([[0.5, -0.5, 1.5, 2.5, 0.50001, 0.0]], np.float32)
    codes = master_weights.codes_masters("F32", weights.view(np.uint8), 6, np.float32(1))
    assert next(codes).tolist() == [[1, 1, 2, 2, 2, 1]]


@pytest.mark.parametrize(
    ("value", "mean"), [(0.0, np.float32(1e-5)), (1e-6, np.float32(1e-5)), (np.nan, np.nan)]
)
def test_absmean_is_clamped_but_nan_stays(value, mean):
    data = np.full((2, 8), value, np.float32).view(np.uint8)
    assert master_weights.absmean("F32", data, 8) == pytest.approx(mean, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("scale", [0.0371, 1e-4, 40.0])
def test_weights_that_are_ternary_already(monkeypatch, scale):
    monkeypatch.setattr(tensor, "STEP_WEIGHTS", 1000)
    scale, codes = np.float32(scale), random_codes(40, 200)
    values = (codes.astype(np.float32) - 1) * scale
    values[7] *= np.float32(1 - 2**-8)  # the other neighbour in bfloat16
    data = values.view(np.uint8).reshape(40, -1)
    peak = master_weights.peak("F32", data, 200)
    assert peak.dtype == np.float32 and peak == scale
    assert (joined(master_weights.codes_dequantized("F32", data, 200, peak)) == codes).all()
    for bad in (0.6 * scale, -0.02 * scale, 0.98 * scale, np.nan):
        values[39, 199] = bad
        with pytest.raises(ValueError, match=r"weight .*, limit: 0 or"):
            joined(master_weights.codes_dequantized("F32", data, 200, peak))


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_peak_that_is_no_scale_is_refused(value):
    data = np.full((2, 8), value, np.float32).view(np.uint8)
    peak = master_weights.peak("F32", data, 8)
    assert peak == pytest.approx(value, nan_ok=True)
    with pytest.raises(ValueError, match="limit: finite and above 0"):
        next(master_weights.codes_dequantized("F32", data, 8, peak))
