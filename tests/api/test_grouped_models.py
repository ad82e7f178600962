"""Models whose groups of columns have scales of their own, as anyone loads them."""

import json

import numpy as np
import pytest
from support import group_models
from support.paths import DATA

import bitnet
from bitnet.checkpoints import weights
from bitnet.errors import FormatError
from bitnet.models.transformer import Transformer
from bitnet.runtime import cpu, dispatch
from bitnet.runtime.pool import Pool

GROUPS = DATA / "groups"
FIXTURES = sorted(path.parent.name for path in GROUPS.glob("*/meta.json"))
TALKER = DATA / "gguf_i2_s_llama"


def read(name):
    """(path of the model, meta, reference) of a fixture."""
    folder = GROUPS / name
    meta = json.loads((folder / "meta.json").read_text())
    path = next(folder.glob("*.gguf"), folder)
    return path, meta, np.load(folder / "reference.npz", allow_pickle=False)


@pytest.fixture(params=FIXTURES)
def fixture(request):
    return read(request.param)


def relative_rms(ours, theirs):
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


def errors(model, reference):
    """[relative RMS] of the logits of each sequence; the share of positions with the same best."""
    found, same = [], []
    for j in range(int(reference["n"])):
        ours = model.logits(reference[f"ids_{j}"].tolist())[reference[f"pos_{j}"]]
        theirs = reference[f"logits_{j}"]
        found.append(relative_rms(ours, theirs))
        same += (ours.argmax(1) == theirs.argmax(1)).tolist()
    return found, np.mean(same)


def test_logits_are_as_good_as_float(fixture):
    """Beside transformers in float32 on the same weights, which rounds no activations."""
    path, _, reference = fixture
    with bitnet.load(path, kv_dtype="f32") as model:
        found, same = errors(model, reference)
    assert max(found) <= 2e-3 and same == 1


def test_int8_is_no_worse_than_blocks_of_32_have_to_be(fixture):
    path, meta, reference = fixture
    with bitnet.load(path, kv_dtype="f32", activations="int8") as model:
        found, _ = errors(model, reference)
    assert 2e-3 < max(found) <= meta["tolerance"]["rel_rms_int8"]["block_32"]


@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_the_same_bits_for_any_cpu_threads_and_batch(fixture, activations):
    path, _, reference = fixture
    ids = np.resize(reference["ids_0"], 70).tolist()
    first = None
    for isa in cpu.supported():
        dispatch.use(isa)
        for n_threads in (1, 2):
            options = {"threads": n_threads, "slots": 3, "activations": activations}
            with bitnet.load(path, **options) as model:
                whole = model.logits(ids).tobytes()
                with model.session() as session:
                    for begin, end in ((0, 1), (1, 10), (10, 70)):
                        last = session.feed(ids[begin:end]).tobytes()
                prompts = [ids, ids[:9], ids[:31]]
                texts = model.generate(prompts, max_tokens=3, temperature=0)
                alone = [model.generate(p, max_tokens=3, temperature=0) for p in prompts]
            assert [t.token_ids for t in texts] == [t.token_ids for t in alone]
            found = whole, last, [t.token_ids for t in texts]
            first = found if first is None else first
            assert found == first, (isa, n_threads)
    dispatch.use()
    assert np.frombuffer(first[0], np.float32).reshape(70, -1)[-1].tobytes() == first[1]


def test_activations_are_a_part_of_sessions_and_kept_prefixes(tmp_path):
    path, _, reference = read("gguf_pq2_0")
    ids = reference["ids_0"].tolist()
    saved = tmp_path / "session"
    with bitnet.load(path) as model, model.session() as session:
        session.feed(ids)
        session.save(saved)
        fingerprint = model.weights.fingerprint()
    with bitnet.load(path, activations="int8") as model, model.session() as session:
        with pytest.raises(FormatError, match="model"):
            session.restore(saved)
        assert model.weights.fingerprint() != fingerprint
    with bitnet.load(path, activations="int16") as model, model.session() as session:
        session.restore(saved)
        assert session.length == len(ids)


def test_activations_are_no_choice_of_other_models():
    with pytest.raises(ValueError, match=r"activations: 'int8' \(None: this model has one scale"):
        bitnet.load(activations="int8")
    with pytest.raises(ValueError, match=r"activations: 'int4'"):
        bitnet.load(activations="int4")


@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_the_plan_holds(fixture, activations):
    path, _, reference = fixture
    with bitnet.load(path, activations=activations, slots=2, context=256) as model:
        model.generate(reference["ids_0"].tolist(), max_tokens=2)
        planned = {need.purpose: need.nbytes for need in model.needs if need.where == "pool"}
        for name in ("scratch", "rope", "norms", "logits"):
            assert model.memory().pool.by_purpose[name][0] == planned[name], name


# every container of one model ---------------------------------------------------------------------

CONTAINERS = ["Q2_0_G64", "Q2_0_G128", "PQ2_0", "PTQ1_0", "mlx 128", "mlx 64", "F16", "BF16"]


def written(tmp_path, model, container):
    if container.startswith("mlx"):
        return group_models.mlx_folder(tmp_path / "mlx", model, int(container.split()[1]))
    if container in ("F16", "BF16"):
        tensors = group_models.float_tensors(model, container)
        return group_models.folder(tmp_path / container, model, tensors)
    path = tmp_path / f"{container}.gguf"
    path.write_bytes(group_models.gguf(model, container).bytes())
    return path


@pytest.mark.parametrize("bits", ["int16", "int8"])
def test_equal_bits_from_every_container(tmp_path, bits):
    model = group_models.base(256, n_heads=4)
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], np.int32)
    found = {}
    for container in CONTAINERS:
        pool = Pool(1 << 28)
        checkpoint = weights.open_checkpoint(written(tmp_path, model, container))
        opened = weights.of_checkpoint(checkpoint, cache=False, pool=pool, activations=bits)
        transformer = Transformer(opened, pool, context=16)
        state = transformer.new_state(dtype="f32")
        found[container] = transformer.forward(ids, [(state, 10)], logits="all").tobytes()
    assert len(set(found.values())) == 1, found.keys()
