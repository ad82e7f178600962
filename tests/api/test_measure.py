"""What a measurement counts as read: the weights of the model that is loaded, wherever they lie."""

import numpy as np
import pytest
from support.paths import DATA

import bitnet
from bitnet.api.measure import bytes_per_token, measure, weight_runs

GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
FOLDER = DATA / "hf_bitnet_offline"


@pytest.mark.parametrize("mapping", ["map", "copy"])
@pytest.mark.parametrize("path", [GGUF, FOLDER], ids=["in-place", "repacked"])
def test_the_weights_are_the_model_s_own(path, mapping):
    with bitnet.load(path, mapping=mapping, threads=1) as model:
        weights, runs = model.weights, weight_runs(model.weights)
        used = bytes_per_token(weights)
        spans = [(run.ctypes.data, run.ctypes.data + run.nbytes) for run in runs]
        codes = [weights.ternary(name).codes for name in weights.config.tensor_shapes()
                 if name.endswith("_proj")]  # fmt: skip
        for array in [*codes, weights.rows("lm_head").data]:
            begin, end = array.ctypes.data, array.ctypes.data + array.nbytes
            assert sum(a <= begin and end <= b for a, b in spans) == 1
        n_mapped = len(weights.mappings())
        assert len(runs) <= n_mapped if mapping == "map" else len(runs) == len(codes) + 1
        assert used <= sum(run.nbytes for run in runs)
        del runs, codes, array


def test_a_measurement_reads_what_was_loaded():
    """Of another layout too, which the file does not say: nothing is opened a second time."""
    with bitnet.load(GGUF, layout="64x16", threads=1, context=16) as model:
        model.path = None
        told = []
        found = measure(model, 5, 3, 2, told.append)
        assert found["bytes_per_token"] == bytes_per_token(model.weights)
        assert found["share"] == pytest.approx(found["decode_tps"] / found["bound_tps"])
        assert told == ["round 1 of 2", "round 2 of 2"]
        assert np.isfinite([value for value in found.values() if isinstance(value, float)]).all()
        with pytest.raises(ValueError, match="capacity: 17"):
            measure(model, 12, 5, 1)
