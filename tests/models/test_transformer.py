"""The graph against transformers in float32 (stored) and NumPy in float64."""

import json

import numpy as np
import pytest
from support import reference
from support.paths import DATA

from bitnet.checkpoints import weights
from bitnet.errors import ContextFull, FormatError, PoolExhausted
from bitnet.formats import float_blocks
from bitnet.models.transformer import Transformer
from bitnet.runtime import cpu, dispatch
from bitnet.runtime.pool import Pool

FIXTURES = sorted(path.parent.name for path in DATA.glob("*/meta.json"))
LLAMA_GRAPH = [name for name in FIXTURES if "embedding" not in name]
BITNET = ["hf_bitnet_offline", "hf_bitnet_online", "gguf_i2_s_bitnet158"]


def open_fixture(name, pool):
    meta = json.loads((DATA / name / "meta.json").read_text())
    return weights.open(DATA / name / meta["load"], cache=False, pool=pool), meta


def everything(name):
    pool = Pool(1 << 28)
    opened, meta = open_fixture(name, pool)
    return opened, pool, meta, np.load(DATA / name / "reference.npz", allow_pickle=False)


@pytest.fixture(params=BITNET)
def fixture(request):
    return everything(request.param)


@pytest.fixture(params=LLAMA_GRAPH)
def llama_graph(request):
    return everything(request.param)


@pytest.fixture(params=FIXTURES)
def any_family(request):
    return everything(request.param)


def logits_of(model, token_ids, chunk=256, dtype="f32"):
    cache = model.new_state(dtype=dtype)
    parts = [
        np.asarray(token_ids[i : i + chunk], np.int32) for i in range(0, len(token_ids), chunk)
    ]
    return np.concatenate(
        [model.forward(part, [(cache, len(part))], logits="all").copy() for part in parts]
    )


def some_ids(stored, n):
    every = np.concatenate([stored[f"ids_{j}"] for j in range(int(stored["n"]))])
    return np.resize(every, n).astype(np.int32)


def relative_rms(ours, theirs):
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


def test_every_published_form_is_there():
    assert len(FIXTURES) == 12 and len(LLAMA_GRAPH) == 9


def test_logits_agree_with_transformers(llama_graph):
    opened, pool, meta, stored = llama_graph
    model = Transformer(opened, pool, context=512)
    for j in range(int(stored["n"])):
        ours = logits_of(model, stored[f"ids_{j}"])[stored[f"pos_{j}"]]
        assert relative_rms(ours, stored[f"logits_{j}"]) <= meta["tolerance"]["rel_rms"]
        assert (ours.argmax(1) == stored[f"logits_{j}"].argmax(1)).mean() >= meta["tolerance"][
            "argmax"
        ]


def tensors_of(opened):
    """Every tensor as reference.forward wants it, through the NumPy definition of the layouts."""
    found = {}
    for name, shape in opened.config.tensor_shapes().items():
        if name.endswith("_proj"):
            t = opened.ternary(name)
            fields = t.codes.reshape(t.n_rows, -1, 1, 32) >> np.array([6, 4, 2, 0])[:, None] & 3
            q = fields.reshape(t.n_rows, -1)[:, : t.n_cols].astype(int) - 1
            found[name] = (q, t.scales[:, 0])
        elif len(shape) == 1:
            found[name] = opened.vector(name)
        else:
            rows = opened.rows(name)
            found[name] = float_blocks.dequantize(rows.type, rows.data, rows.n_cols)
    return found


def test_logits_agree_with_numpy(llama_graph):
    opened, pool, _, stored = llama_graph
    ours = logits_of(Transformer(opened, pool, context=64), stored["ids_0"])
    theirs = reference.forward(opened.config, tensors_of(opened), stored["ids_0"])
    assert relative_rms(ours, theirs) <= 1e-5


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_the_same_bits_for_any_cpu_threads_and_chunks(any_family, dtype):
    opened, pool, _, stored = any_family
    ids = some_ids(stored, 150)
    first = None
    for isa, n_threads, chunk in [
        (i, t, c) for i in cpu.supported() for t, c in ((1, 256), (2, 7))
    ] + [("generic", 1, 1)]:
        dispatch.use(isa)
        found = logits_of(
            Transformer(opened, pool, context=256, n_threads=n_threads), ids, chunk, dtype
        )
        first = found if first is None else first
        assert found.tobytes() == first.tobytes(), (isa, n_threads, chunk)
    dispatch.use()


def test_greedy_text_of_300_tokens():
    pool = Pool(1 << 28)
    opened, _ = open_fixture("hf_bitnet_offline", pool)
    stored = np.load(DATA / "hf_bitnet_offline" / "reference.npz", allow_pickle=False)
    for dtype, n_threads in (("f32", 1), ("f16", 2)):
        model = Transformer(opened, pool, context=512, n_threads=n_threads)
        cache = model.new_state(dtype=dtype)
        token, ids = stored["greedy_prompt"].astype(np.int32), []
        for _ in range(300):
            token = np.array([model.forward(token, [(cache, len(token))])[0].argmax()], np.int32)
            ids.append(int(token[0]))
        assert ids == stored["greedy_ids"].tolist()


def test_a_ragged_batch_gives_what_each_sequence_gives_alone(fixture):
    opened, pool, _, stored = fixture
    ids = [some_ids(stored, 20)[i:] for i in (0, 3, 5)]
    model = Transformer(opened, pool, context=64, max_sequences=3)
    alone = [logits_of(model, i) for i in ids]
    caches = [model.new_state(dtype="f32") for _ in ids]
    done = [0, 0, 0]
    for takes in ((5, 1, 2), (1, 1, 1), (2, 6, 1)):
        rows = np.concatenate([i[d : d + t] for i, d, t in zip(ids, done, takes, strict=True)])
        found = model.forward(rows, list(zip(caches, takes, strict=True))).copy()
        done = [d + t for d, t in zip(done, takes, strict=True)]
        for row, whole, d in zip(found, alone, done, strict=True):
            assert row.tobytes() == whole[d - 1].tobytes()


def test_trim_and_fork_give_what_a_fresh_sequence_gives(fixture):
    opened, pool, _, stored = fixture
    ids = some_ids(stored, 200)
    model = Transformer(opened, pool, context=256)
    whole = logits_of(model, ids)
    cache = model.new_state(dtype="f32")
    model.forward(ids[:190], [(cache, 190)], logits="none")
    cache.trim(150)
    other = cache.fork()
    for c in (cache, other):
        assert model.forward(ids[150:], [(c, 50)])[0].tobytes() == whole[199].tobytes()


def test_a_step_that_fails_changes_nothing():
    pool = Pool(1 << 26)
    opened, _ = open_fixture("gguf_i2_s_bitnet158", pool)
    model = Transformer(opened, pool, context=64, max_batch=64)
    cache = model.new_state(capacity=20, dtype="f32")
    ids = np.arange(19, dtype=np.int32)
    before = model.forward(ids, [(cache, 19)]).copy()
    with pytest.raises(ContextFull):
        model.forward(ids[:2], [(cache, 2)])
    with pytest.raises(ValueError, match=r"token id 384 is not in 0\.\.383"):
        model.forward(np.array([384], np.int32), [(cache, 1)])
    assert cache.length == 19
    cache.trim(18)
    assert model.forward(ids[18:], [(cache, 1)]).tobytes() == before.tobytes()
    hog = [pool.allocate(1 << 16, "hog")]
    with pytest.raises(PoolExhausted):
        while True:
            hog.append(pool.allocate(1 << 16, "hog"))
    with pytest.raises(PoolExhausted, match="kv"):
        model.forward(ids, [(model.new_state(dtype="f32"), 19)])


def test_code_3_is_an_error_at_first_use(tmp_path):
    source = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
    pool = Pool(1 << 26)
    with weights.open(source, pool=pool) as opened:
        address = opened.ternary("layers.1.mlp.up_proj").codes.ctypes.data
        offset = address - opened.mappings()[0][1]
    data = bytearray(source.read_bytes())
    data[offset + 64 * 7] = 0xFF  # row 7: 256 columns are 64 bytes
    (tmp_path / "bad.gguf").write_bytes(data)
    opened = weights.open(tmp_path / "bad.gguf", pool=pool)
    model = Transformer(opened, pool, context=16)
    for _ in range(2):  # and it stays one
        with pytest.raises(FormatError, match=r"bad\.gguf.*ffn_up.*row 7.*code 3"):
            model.forward(np.zeros(1, np.int32), [(model.new_state(), 1)])


def test_decoding_takes_nothing_from_the_pool(any_family):
    opened, pool, _, _ = any_family
    model = Transformer(opened, pool, context=256)
    cache = model.new_state()
    model.forward(np.zeros(130, np.int32), [(cache, 130)])
    before = pool.stats()
    for _ in range(100):
        model.forward(np.zeros(1, np.int32), [(cache, 1)])
    assert pool.stats() == before
