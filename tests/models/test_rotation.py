"""Rotated weights (prism.hadamard.*): logits beside the model that was not rotated, every wrong
reading, and every description that is refused. test_grouped_models.py has more of pq2_0."""

import itertools
import json

import numpy as np
import pytest
from support.hybrid_models import rewritten
from support.paths import DATA

import bitnet
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.compute import ops
from bitnet.compute.operands import Batch, Matrix
from bitnet.compute.rotation import Hadamard
from bitnet.errors import FormatError
from bitnet.formats.gguf import GGUFFile
from bitnet.models import qwen35

ROTATED = DATA / "rotated"
FILES = {
    path.parent.name.removeprefix("gguf_qwen35_hadamard_"): path
    for path in (*ROTATED.glob("*/*.gguf"), *DATA.glob("groups/*hadamard*/*.gguf"))
}
BASE = FILES["pq2_0"]
P = "prism.hadamard."


def relative_rms(ours, theirs):
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


def error_of(path, stored):
    with bitnet.load(path, kv_dtype="f32", threads=1) as model:
        ours = model.logits(stored["ids_0"].tolist())[stored["pos_0"]]
    return relative_rms(ours, stored["logits_0"])


def stored_of(path):
    return np.load(path.parent / "reference.npz", allow_pickle=False)


# the transform ------------------------------------------------------------------------------------
def definition(n):
    """H[r, c] = (-1)^popcount(r & c) / sqrt(n), float64."""
    at = np.arange(n)
    bits = np.array([[bin(r & c).count("1") for c in at] for r in at])
    return (-1.0) ** bits / np.sqrt(n)


def in_stages(x, block):
    """float32, each sum and difference rounded, at distances 1, 2, 4, ..."""
    y, h = x.astype(np.float32).reshape(-1, block).copy(), 1
    while h < block:
        pairs = y.reshape(-1, block // (2 * h), 2, h)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        y = np.stack([a + b, a - b], 2).reshape(-1, block)
        h *= 2
    return (y * np.float32(block**-0.5)).reshape(x.shape)


@pytest.mark.parametrize(("block", "n"), [(2, 6), (8, 40), (16, 16), (128, 384), (1024, 2048)])
def test_transform(isa, block, n):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, n)).astype(np.float32)
    signs = rng.choice([-1, 1], n).astype(np.float32)
    batch, h = Batch(8, 1, 2).rows_only(5), Hadamard(signs, block, n)
    forward, back = x.copy(), x.copy()
    ops.rotate(Matrix(forward), h, batch)
    ops.rotate(Matrix(back), h, batch, inverse=True)
    assert forward.tobytes() == in_stages(x * signs, block).tobytes()
    assert back.tobytes() == (in_stages(x, block) * signs).tobytes()
    if block <= 128:
        exact = (x * signs).astype(float).reshape(-1, block) @ definition(block)
        assert np.abs(forward.reshape(-1, block) - exact).max() < 1e-5
    ops.rotate(Matrix(forward), h, batch, inverse=True)
    assert np.abs(forward - x).max() < 1e-5


def test_heads_go_into_grouped_order():
    x = np.arange(24, dtype=np.float32).reshape(2, 12)  # six heads of two columns, two key heads
    out = np.zeros_like(x)
    ops.group_heads(Matrix(out), Matrix(x), 2, 6, Batch(2, 1, 1).rows_only(2))
    expected = x.reshape(2, 3, 2, 2).swapaxes(1, 2).reshape(2, 12)
    assert (out == expected).all()


def test_blocks_that_do_not_fit_are_refused():
    for block, n in ((3, 6), (0, 8), (16, 8), (16, 24)):
        with pytest.raises(ValueError, match="power of two"):
            Hadamard(None, block, n)
    with pytest.raises(ValueError, match="4 signs"):
        Hadamard(np.ones(4, np.float32), 4, 8)


# models -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(FILES))
def test_logits_are_those_of_the_model_before(name):
    path, stored = FILES[name], stored_of(FILES[name])
    meta = json.loads((path.parent / "meta.json").read_text())
    assert error_of(path, stored) < 1e-3
    with bitnet.load(path, kv_dtype="f32", threads=1, activations="int8") as model:
        ours = model.logits(stored["ids_0"].tolist())[stored["pos_0"]]
    found = relative_rms(ours, stored["logits_0"])
    assert 1e-3 < found <= meta["tolerance"]["rel_rms_int8"]["block_32"]


def sequency(x, h, batch, inverse=False):
    """The rows of H in the order of their changes of sign."""
    array = x.array()[: batch.n_tokens]
    n = h.block
    order = np.argsort((np.diff(np.sign(definition(n)), axis=1) != 0).sum(1))
    ops_rotate(x, h, batch, inverse)
    array[:] = array.reshape(-1, n)[:, order].reshape(array.shape)


ops_rotate = ops.rotate


def wrong(reading, monkeypatch):
    if reading == "sequency":
        monkeypatch.setattr(ops, "rotate", sequency)
    elif reading == "signs on the other side":
        swap = lambda x, h, batch, inverse=False: ops_rotate(x, h, batch, not inverse)  # noqa: E731
        monkeypatch.setattr(ops, "rotate", swap)
    elif reading == "embedding left as it is":
        skip = lambda x, h, batch, inverse=False: inverse or ops_rotate(x, h, batch)  # noqa: E731
        monkeypatch.setattr(ops, "rotate", skip)
    elif reading == "tiled":

        def tiled(out, x, n_keys, n_heads, batch):
            out.array()[:] = x.array()

        monkeypatch.setattr(ops, "group_heads", tiled)
    elif reading == "gates of rotated inputs":
        gates = qwen35.DeltaNet.project_gates

        def rotated(self, s, batch):
            hadamard = self.qkv_z_proj._hadamard
            ops_rotate(s.normed, hadamard, batch)
            gates(self, s, batch)
            ops_rotate(s.normed, hadamard, batch, True)

        monkeypatch.setattr(qwen35.DeltaNet, "project_gates", rotated)
    else:
        monkeypatch.setattr(ops, "rotate", lambda *arguments, **options: None)


@pytest.mark.parametrize(
    "reading",
    ["sequency", "signs on the other side", "embedding left as it is", "tiled",
     "gates of rotated inputs", "no rotation"],
)  # fmt: skip
def test_every_wrong_reading_fails(reading, monkeypatch):
    wrong(reading, monkeypatch)
    assert error_of(BASE, stored_of(BASE)) > 0.1


def names(key):
    return list(GGUFFile(BASE).metadata[P + key])


def changed_signs(value):
    signs = GGUFFile(BASE).metadata[P + "sign_values"].copy()
    signs[7] = value
    return signs


REFUSED = [
    ({"version": 3}, "version"), ({"version": None}, "version: missing"),
    ({"version": 2}, "version"), ({"version": 2, "tied_output": True}, "version"),
    ({"tied_output": True}, "version"), ({"version": "1"}, "version"),
    ({"block_size": 96}, "block_size"), ({"block_size": 0}, "block_size"),
    ({"block_size": 1}, "block_size"), ({"block_size": 256}, "block_size: 256 .*384"),
    ({"transform": "normalized-sequency-walsh-hadamard"}, "transform"),
    ({"axis": "output-first-dimension"}, "axis"), ({"sign_mode": "seeded"}, "sign_mode"),
    ({"sign_mode": "identity"}, "sign_widths: given"), ({"sign_widths": None}, "sign_widths"),
    ({"sign_widths": np.array([256, 384, 511], np.int32)}, "sign_values count"),
    ({"sign_widths": np.array([256, 896], np.int32)}, "no 384"),
    ({"sign_widths": np.array([256, 384, 512, -1, 1], np.int32)}, "sign_widths"),
    ({"sign_widths": np.array([256, 256, 640], np.int32)}, "sign_widths"),
    ({"sign_values": changed_signs(0)}, "sign_values"),
    ({"sign_values": changed_signs(2)}, "sign_values"),
    ({"weight_names": []}, "weight_names"), ({"weight_names": None}, "weight_names"),
    ({"weight_names": [*names("weight_names"), "blk.9.ffn_up.weight"]}, "blk.9.ffn_up"),
    ({"weight_names": [*names("weight_names"), "blk.0.ssm_alpha.weight"]}, "ssm_alpha"),
    ({"weight_names": [*names("weight_names"), "blk.0.attn_norm.weight"]}, "attn_norm"),
    ({"weight_names": [*names("weight_names"), "token_embd.weight"]}, "token_embd"),
    ({"weight_names": [*names("weight_names"), "output.weight"]}, "twice"),
    ({"weight_names": [n for n in names("weight_names") if n != "blk.0.ffn_up.weight"]},
     "share their inputs"),
    ({"inverse_weight_names": ["output.weight"]}, "inverse_weight_names"),
    ({"gdn_v_grouped": None}, "gdn_v_grouped"), ({"gdn_v_grouped": False}, "gdn_v_grouped"),
    ({"gdn_v_grouped": 1}, "gdn_v_grouped"), ({"surprise": 1}, "surprise"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "pattern"), REFUSED, ids=itertools.count())
def test_what_the_contract_does_not_allow_is_refused(tmp_path, changes, pattern):
    metadata = {P + key: value for key, value in changes.items()}
    path = rewritten(tmp_path / "bad.gguf", metadata, source=BASE)
    with pytest.raises(FormatError, match=pattern):
        bitnet.load(path)


def test_a_rotated_embedding_is_no_head_without_a_transform(tmp_path):
    changes = {P + "version": 1, P + "tied_output": None}
    path = rewritten(tmp_path / "bad.gguf", changes, source=FILES["tied"])
    with pytest.raises(FormatError, match="version: 1"):
        open_checkpoint(path)


def test_rotation_is_a_part_of_what_a_model_is(tmp_path):
    other = rewritten(tmp_path / "other.gguf", {P + "sign_values": changed_signs(1)}, source=BASE)
    flipped = rewritten(
        tmp_path / "flipped.gguf", {P + "sign_values": changed_signs(-1)}, source=BASE
    )
    with bitnet.load(other) as one, bitnet.load(flipped) as two:
        assert one.weights.fingerprint() != two.weights.fingerprint()
