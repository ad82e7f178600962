"""The screen of a head: what it lets through is what the full head gives, bit for bit, and nothing
that is among the best is missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitnet
from bitnet.checkpoints import repack_cache
from bitnet.checkpoints.checkpoint import EmbeddingRows
from bitnet.compute import operands, ops
from bitnet.formats.ggml_types import FLOAT_TYPES
from bitnet.formats.gguf import GGUFFile
from bitnet.models import lm_head_screen
from bitnet.models.lm_head_screen import LogitsQuery
from bitnet.runtime import cpu, dispatch

NONE = np.empty(0, np.int32)


def bound(type, values):
    """(Rows, Screen) of float32 values (n_rows, n_cols), as a type keeps them."""
    data = np.ascontiguousarray(values, np.float32)
    if type == "BF16":
        data = (data.view(np.uint32) >> 16).astype(np.uint16)
    data = data.astype(np.float16) if type == "F16" else data
    data = data.view(np.uint8)
    rows = EmbeddingRows(type, data, *values.shape, "")
    limits = np.empty((len(data), 3), np.float32)
    codes = np.concatenate([part.copy() for part in lm_head_screen.derive(rows, limits)])
    return operands.QuantizedRows(data, type, values.shape[1]), operands.Screen(codes, limits)


def both(table, screen, x, queries, n_threads=1):
    """(logits of the full head, of the screened one, numbers of those that are there)."""
    x = operands.Matrix(np.atleast_2d(np.asarray(x, np.float32)))
    batch = operands.Batch(x.n_rows, 1, n_threads).rows_only(x.n_rows)
    full, part = (operands.Matrix(np.zeros((x.n_rows, table.n_rows), np.float32)) for _ in "ab")
    ops.head(full, table, x, batch)
    counts = ops.screen(part, table, screen, x, batch, queries)
    return full.array(), part.array(), counts


def check(full, part, query):
    """Every logit that is asked for is computed, and every computed one is right."""
    there = part.view(np.uint32) != np.float32(ops.screened).view(np.uint32)
    assert part[there].tobytes() == full[there].tobytes()
    n, margin, ids, _ = query
    assert there[ids].all()
    assert there[~np.isfinite(full)].all()
    finite = np.sort(full[np.isfinite(full)])[::-1]
    if len(finite):
        least = finite[min(n, len(finite)) - 1] - margin
        assert there[full >= least].all()
    if not np.isnan(full).any():
        assert full.argmax() == part.argmax()


def random_rows(n_rows, n_cols, seed=0):
    return np.random.default_rng((n_rows, n_cols, seed)).standard_normal((n_rows, n_cols))


@pytest.mark.parametrize("type", FLOAT_TYPES)
@pytest.mark.parametrize("n_cols", [1, 7, 16, 63, 64, 100, 640, 2565])
def test_the_best_are_those_of_the_full_head(isa, type, n_cols):
    table, screen = bound(type, random_rows(1000, n_cols))
    x = random_rows(5, n_cols, 1)
    queries = [
        LogitsQuery(1),
        LogitsQuery(7),
        LogitsQuery(1, 2.5),
        LogitsQuery(1, 0.0, np.array([3, 999, 3], np.int32)),
        LogitsQuery(1000),
    ]
    full, part, counts = both(table, screen, x, queries, n_threads=2)
    for i in range(5):
        check(full[i], part[i], queries[i])
    assert counts[4] == 1000
    if n_cols >= 64:
        assert max(counts[:1]) < 100


def test_every_instruction_set_lets_the_same_through():
    table, screen = bound("F16", random_rows(700, 321))
    parts = []
    for name in cpu.supported():
        dispatch.use(name)
        parts.append(both(table, screen, random_rows(2, 321, 5), [LogitsQuery(3)] * 2)[1].tobytes())
    dispatch.use()
    assert len(set(parts)) == 1


def test_codes_at_their_limits(isa):
    """The largest sums: they fit the kernels' integers at the greatest width."""
    n = operands.SCREEN_LIMITS[2]
    rows = np.zeros((9, n), np.float32)
    rows[0], rows[1], rows[2], rows[2, ::2] = 1, -1, 1, -1
    table, screen = bound("F32", rows)
    inputs = rows[0], -rows[0], rows[2], rows[0]
    for some in (*inputs, inputs[:2], inputs[:3], inputs):
        n_inputs = len(np.atleast_2d(some))
        full, part, counts = both(table, screen, some, [LogitsQuery(1)] * n_inputs)
        for i in range(n_inputs):
            check(full[i], part[i], LogitsQuery(1))
        assert counts == [1] * n_inputs


@pytest.mark.parametrize("n_rows", [321, 2200], ids=["all bits", "coarse"])
@pytest.mark.parametrize("n_cols", [5, 64, 100, 379, 640])
@pytest.mark.parametrize("n_inputs", [2, 3, 4, 5, 7, 8, 11, 32])
def test_inputs_together_let_the_same_through_as_each_alone(isa, n_rows, n_cols, n_inputs):
    table, screen = bound("F16", random_rows(n_rows, n_cols))
    x, queries = random_rows(n_inputs, n_cols, 3), [LogitsQuery(1 + i % 3) for i in range(n_inputs)]
    queries[0] = LogitsQuery(1, draw=(1, 2, 1.0, 1.0, 0.0))
    queries[-1] = LogitsQuery(40) if n_inputs == 11 else queries[-1]  # the last three: all bits
    _, together, counts = both(table, screen, x, queries, n_threads=2)
    for i in range(n_inputs):
        _, alone, count = both(table, screen, x[i], queries[i : i + 1])
        assert together[i].tobytes() == alone[0].tobytes()
        assert counts[i] == count[0]


def test_equal_rows_all_pass(isa):
    rows = random_rows(300, 128)
    rows[[5, 100, 299]] = rows[5]
    table, screen = bound("F16", rows)
    full, part, _ = both(table, screen, rows[5], [LogitsQuery(1)])
    assert part[0].argmax() == 5
    assert (part[0] == full[0, 5]).sum() == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_rows_that_are_not_finite_pass(isa, value):
    rows = random_rows(300, 128)
    rows[7, 3], rows[250] = value, value
    table, screen = bound("F32", rows)
    full, part, counts = both(table, screen, random_rows(1, 128, 2), [LogitsQuery(2)])
    check(full[0], part[0], LogitsQuery(2))
    assert part[0].view(np.uint32)[[7, 250]].tolist() == full[0].view(np.uint32)[[7, 250]].tolist()
    assert counts[0] < 75


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38, 0, 1e-40])
def test_inputs_without_bounds_take_the_full_head(isa, value):
    table, screen = bound("F16", random_rows(300, 128))
    x = np.zeros((1, 128), np.float32)
    x[0, 5] = value
    full, part, counts = both(table, screen, x, [LogitsQuery(1)])
    assert counts == [300]
    assert part.tobytes() == full.tobytes()


magnitudes = st.sampled_from([0, 1e-45, 1e-38, 1e-30, 1e-10, 0.01, 1, 3, 1e4, 1e18, 1e30, 3e38])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_nothing_is_lost(data):
    """Rows and inputs of any size, some of them close to one another."""
    n_rows, n_cols = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 140))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    rows = rng.standard_normal((n_rows, n_cols)) * data.draw(magnitudes)
    if data.draw(st.booleans()):
        rows *= 10.0 ** rng.integers(-20, 3, (n_rows, 1))
    if data.draw(st.booleans()):  # copies that differ in the last bits
        rows[:] = rows[:1] * (1 + rng.integers(-3, 4, rows.shape) * 2.0**-11)
    x = rng.standard_normal(n_cols) * data.draw(magnitudes)
    if data.draw(st.booleans()):
        x[data.draw(st.integers(0, n_cols - 1))] *= 1000
    if data.draw(st.booleans()):
        rows[:, ::2], x[1::2] = rows[:, ::2].round(), 0
    with np.errstate(over="ignore", invalid="ignore"):
        table, screen = bound(data.draw(st.sampled_from(FLOAT_TYPES)), rows.astype(np.float32))
        ids = rng.integers(0, n_rows, data.draw(st.integers(0, 3))).astype(np.int32)
        n, margin = data.draw(st.integers(1, n_rows)), data.draw(st.sampled_from([0, 0.1, 30]))
        full, part, _ = both(table, screen, x.astype(np.float32), [LogitsQuery(n, margin, ids)])
    check(full[0], part[0], LogitsQuery(n, margin, ids))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_nothing_is_lost_where_inputs_share_rows(data):
    """Enough rows for coarse bounds; the best of all may be anywhere, and many nearly as good."""
    n_rows, n_cols = data.draw(st.integers(2049, 2300)), data.draw(st.integers(1, 70))
    n_inputs = data.draw(st.integers(3, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    rows = rng.standard_normal((n_rows, n_cols)) * data.draw(magnitudes)
    if data.draw(st.booleans()):  # copies that differ in the last bits
        rows[:] = rows[:1] * (1 + rng.integers(-3, 4, rows.shape) * 2.0**-11)
    x = rng.standard_normal((n_inputs, n_cols)) * data.draw(magnitudes)
    if data.draw(st.booleans()):  # inputs of which few columns count
        x[:, rng.integers(0, n_cols)] *= data.draw(st.sampled_from([10, 1000]))
    if data.draw(st.booleans()):
        rows[-1] = rows.max() * np.sign(x[0])
    if data.draw(st.booleans()):  # no rounding: bounds of all bits are tight, few bits see little
        most = data.draw(st.sampled_from([60, 130, 1000, 16256]))
        rows, x = rng.integers(-127, 128, rows.shape), rng.integers(-most, most + 1, x.shape)
        rows[:, 0], x[:, 0] = 127, 16256
    with np.errstate(over="ignore", invalid="ignore"):
        table, screen = bound(data.draw(st.sampled_from(FLOAT_TYPES)), rows.astype(np.float32))
        queries = [
            LogitsQuery(1 + i % 4, data.draw(st.sampled_from([0, 0.1]))) for i in range(n_inputs)
        ]
        full, part, _ = both(table, screen, x.astype(np.float32), queries)
    for i in range(n_inputs):
        check(full[i], part[i], queries[i])


def check_draws(table, screen, x, draws, n_threads=1):
    """Each gives the same id as from the full head: how many logits that took."""
    queries = [LogitsQuery(1, draw=draw) for draw in draws]
    full, part, counts = both(table, screen, np.tile(x, (len(draws), 1)), queries, n_threads)
    for i, draw in enumerate(draws):
        there = part[i].view(np.uint32) != np.float32(ops.screened).view(np.uint32)
        assert there.sum() == counts[i]
        assert part[i][there].tobytes() == full[i][there].tobytes()
        if -np.inf < full[i].max() < np.inf:
            assert ops.sample(part[i], *draw) == ops.sample(full[i], *draw)
    return counts


DRAWS = [
    (temperature, top_p, min_p)
    for temperature in (0.1, 0.7, 1.0, 2.0)
    for top_p, min_p in ((1, 0), (0.9, 0), (0.5, 0), (0.99, 0), (1e-9, 0), (1, 0.05), (0.9, 0.1))
]


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0], ids=["flat", "between", "peaked"])
def test_draws_are_those_of_the_full_head(isa, spread):
    """28 draws from each of 20 rows, of which most are settled by a part of the logits."""
    table, screen = bound("F16", random_rows(3000, 64) * spread / 8)
    counts = {draw: [] for draw in DRAWS}
    for position, x in enumerate(random_rows(20, 64, 3)):
        found = check_draws(table, screen, x, [(5, position, *draw) for draw in DRAWS], 2)
        for draw, count in zip(DRAWS, found, strict=True):
            counts[draw].append(count)
    plain = np.array([counts[t, 1, 0] for t in (0.7, 1.0, 2.0)])
    assert plain.max() < 750
    if spread > 1:
        assert np.mean([counts[t, p, 0] for t in (0.7, 1.0) for p in (0.5, 0.9)]) < 1000


def test_draws_of_inputs_that_share_rows(isa):
    """With coarse bounds, which the noise's are added to: half of the rows are done with them."""
    table, screen = bound("F16", random_rows(4200, 64) / 8)
    for seed, x in enumerate(random_rows(6, 64, 6)):
        draws = [(seed, i, (0.7, 1.0, 2.0)[i % 3], 1.0, 0.0) for i in range(11)]
        assert max(check_draws(table, screen, x, draws, 2)) < 1050


def test_draws_with_ids_whose_logits_change(isa):
    """As many more of the noisiest are there as ids could be moved behind others."""
    table, screen = bound("F16", random_rows(2000, 64) / 8)
    for position, x in enumerate(random_rows(30, 64, 4)):
        ids = np.random.default_rng(position).integers(0, 2000, 5).astype(np.int32)
        draw = (9, position, 1.0, 1.0, 0.0)
        full, part, (count,) = both(table, screen, x, [LogitsQuery(6, 0.0, ids, draw)])
        assert count < 500
        for change in (-100, 0, 5):
            full[0, ids] += np.float32(change)
            part[0, ids] += np.float32(change)
            assert ops.sample(part[0], *draw) == ops.sample(full[0], *draw)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_draw_is_changed(data):
    """Rows and inputs of any size, some of them close to one another, any parameters."""
    n_rows, n_cols = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    rows = rng.standard_normal((n_rows, n_cols)) * data.draw(magnitudes)
    if data.draw(st.booleans()):  # copies that differ in the last bits
        rows[:] = rows[:1] * (1 + rng.integers(-3, 4, rows.shape) * 2.0**-11)
    if data.draw(st.booleans()):  # a few that are far more likely than the rest
        rows[:: data.draw(st.integers(1, 50))] *= 3
    x = rng.standard_normal(n_cols) * data.draw(magnitudes)
    draws = [
        (
            data.draw(st.integers(0, (1 << 64) - 1)),
            data.draw(st.integers(0, 1 << 31)),
            data.draw(st.sampled_from([1e-4, 0.3, 1.0, 3.0, 100.0])),
            data.draw(st.sampled_from([1e-300, 0.1, 0.5, 0.9, 0.999, 1 - 2**-53, 1.0])),
            data.draw(st.sampled_from([0, 0, 1e-300, 0.01, 1])),
        )
        for _ in range(8)
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        table, screen = bound(data.draw(st.sampled_from(FLOAT_TYPES)), rows.astype(np.float32))
        check_draws(table, screen, x.astype(np.float32), draws)


def test_draws_from_rows_that_are_not_finite(isa):
    rows = random_rows(300, 128)
    rows[7, 3] = np.nan
    table, screen = bound("F32", rows)
    for draw in ((1, 2, 1.0, 1.0, 0.0), (1, 2, 1.0, 0.9, 0.0), (1, 2, 1.0, 1.0, 0.5)):
        _, part, _ = both(table, screen, random_rows(1, 128, 2), [LogitsQuery(1, draw=draw)])
        assert np.isnan(part[0, 7])


def test_backoff_grows_with_every_step_of_no_use():
    backoff, skipped = lm_head_screen.Backoff(), []
    for _ in range(8):
        backoff.record(False)
        skipped.append(0)
        while backoff.should_skip():
            skipped[-1] += 1
    assert skipped == [0, 1, 2, 4, 8, 16, 16, 16]
    backoff.record(True)
    assert not backoff.should_skip()
    backoff.record(False)
    assert not backoff.should_skip()


def test_arguments_out_of_range():
    table, screen = bound("F16", random_rows(30, 32))
    for query in (LogitsQuery(0), LogitsQuery(2000), LogitsQuery(1, -1.0), LogitsQuery(1, np.nan)):
        with pytest.raises(ValueError, match="best, limit 1024"):
            both(table, screen, np.ones(32), [query])
    for draw in ((1, 0, 0.0, 1.0, 0.0), (1, 0, np.nan, 1.0, 0.0)):
        with pytest.raises(ValueError, match=r"^query: "):
            both(table, screen, np.ones(32), [LogitsQuery(1, draw=draw)])
    with pytest.raises(ValueError, match=r"^query: "):
        both(table, screen, np.ones(32), [LogitsQuery(2, draw=(1, 0, 1.0, 0.9, 0.0))])
    with pytest.raises(ValueError, match="token id 30"):
        both(table, screen, np.ones(32), [LogitsQuery(1, 0.0, np.array([30], np.int32))])
    with pytest.raises(ValueError, match="tokens 1, queries 2"):
        both(table, screen, np.ones(32), [LogitsQuery(1)] * 2)


# a model with one -----------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Every head is screened, and kept in a cache of this test."""
    monkeypatch.setattr(lm_head_screen, "MIN_WEIGHTS", 1)
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    return tmp_path


REQUESTS = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 0, "logit_bias": {7: 4.0, 300: 8.0, 11: -float("inf")}},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 3},
    {"temperature": 1.5, "top_k": 3, "frequency_penalty": 1.0, "seed": 4},
    {"temperature": 1.2, "min_p": 0.05, "seed": 5},
    {"temperature": 0.8, "top_p": 0.8, "seed": 6},
    {"temperature": 0.9, "top_p": 0.95, "min_p": 0.02, "seed": 8},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.0, "repetition_penalty": 1.2, "seed": 9},
    {"temperature": 0.9, "seed": 10, "speculative": "ngram"},
    {"temperature": 0, "speculative": "ngram", "repetition_penalty": 1.1},
]


def texts(model, options):
    given = ["It was the best of", "And he said unto them", "Once upon a time"]
    found = model.generate(given, max_tokens=24, **options)
    return [completion.token_ids for completion in found]


@pytest.mark.parametrize("options", REQUESTS, ids=lambda options: "-".join(options))
def test_text_is_the_same_with_and_without(folder, monkeypatch, options):
    with bitnet.load(slots=3, prefix_cache=False) as model:
        screened = texts(model, options)
        assert model.scheduler.transformer.screen is not None
    monkeypatch.setattr(lm_head_screen, "MIN_WEIGHTS", 1 << 62)
    with bitnet.load(slots=3, prefix_cache=False) as model:
        assert model.scheduler.transformer.screen is None
        assert texts(model, options) == screened


def test_evaluation_has_all_logits(folder):
    with bitnet.load() as model:
        ids = model.tokenizer.encode("It was the best of")
        assert (model.logits(ids) > ops.screened).all()
        with model.session() as session:
            best = int(session.feed(ids).argmax())
            assert (session.decode(best) > ops.screened).all()
            session.trim(0)
            assert session.best(ids) == best


def test_it_is_made_once_and_mapped(folder):
    with bitnet.load() as model:
        assert model.scheduler.transformer.screen is not None
        mapped = [str(path) for path, _, _ in model.weights.mappings()]
    ((path, _, _),) = repack_cache.cache_list(folder)
    assert str(path) in mapped
    before = path.stat().st_mtime_ns
    with bitnet.load():
        assert path.stat().st_mtime_ns == before


def test_without_a_cache_there_is_none(folder, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", "off")
    with bitnet.load() as model:
        assert model.scheduler.transformer.screen is None


def test_a_copy_goes_to_the_pool(folder):
    with bitnet.load(mapping="copy") as model:
        assert all(part.flags.writeable for part in model.weights.screen)
        assert model.generate("And", max_tokens=3).token_ids


def test_a_damaged_one_is_made_again(folder, caplog):
    bitnet.load().close()
    ((path, _, _),) = repack_cache.cache_list(folder)
    data = bytearray(path.read_bytes())
    file = GGUFFile(path)
    bounds = file.tensors[lm_head_screen.TENSOR_NAMES[1]].data
    end = bounds.ctypes.data - file.data.ctypes.data + len(bounds)
    data[end - 4 : end] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with bitnet.load() as model:
        assert np.isfinite(model.weights.screen[1]).all()
    assert "rebuilding a damaged repacked file" in caplog.text


def test_the_plan_counts_it(folder):
    from bitnet.api.load import BUNDLED_MODEL
    from bitnet.checkpoints import memory_plan
    from bitnet.checkpoints.open_checkpoint import open_checkpoint

    for mapping in ("map", "copy"):
        plan = memory_plan.Planner(open_checkpoint(BUNDLED_MODEL))
        chosen = memory_plan.Settings(256, "f16", 1, 1, mapping)
        needs = {need.purpose: need.nbytes for need in plan.needs(chosen)}
        with bitnet.load(context=256, threads=1, mapping=mapping) as model:
            held = model.pool_stats().by_purpose
            assert held["scratch"][0] == needs["scratch"]
            if mapping == "copy":
                assert held["weights"][0] == needs["weights"]
