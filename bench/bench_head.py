"""The head of one token: all its rows, or an int8 copy that tells which few to compute (head.py).

2B-4T's shape with independent random rows and inputs, where many rows are about as near as the
best; and the bundled model's own hidden states.
"""

import numpy as np
import pytest
from support.bounds import seconds_of

from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints import weights
from bitnet.checkpoints.checkpoint import EmbeddingRows
from bitnet.compute import operands, ops
from bitnet.models.lm_head_screen import LogitsQuery, derive
from bitnet.models.transformer import Transformer
from bitnet.runtime import cpu
from bitnet.runtime.pool import Pool

VOCAB, HIDDEN = 128256, 2560
THREADS = sorted({1, min(2, len(cpu.affinity())), cpu.threads()[0]})
N_INPUTS = 64


class Head:
    """rows: EmbeddingRows. inputs: float32 (n, n_cols)."""

    def __init__(self, rows, inputs):
        self.source, self.inputs = rows, inputs
        self.bounds = np.empty((rows.n_rows, 3), np.float32)
        self.codes = np.empty((rows.n_rows, rows.n_cols), np.int8)
        self.rows = operands.QuantizedRows(rows.data, rows.type, rows.n_cols)
        self.derive(max(THREADS))
        self.screen = operands.Screen(self.codes, self.bounds)
        self.out = operands.Matrix(np.zeros((1, rows.n_rows), np.float32))

    def derive(self, n_threads):
        first = 0
        for codes in derive(self.source, self.bounds, n_threads):
            self.codes[first : first + len(codes)] = codes
            first += len(codes)

    def survivors(self, query, n_threads=2):
        """Of each input, how many logits are computed; the best is held against the full head."""
        counts = []
        for x in self.inputs:
            x, batch = operands.Matrix(x[None]), operands.Batch(1, 1, n_threads).rows_only(1)
            ops.head(self.out, self.rows, x, batch)
            best = self.out.array().argmax()
            counts += ops.screen(self.out, self.rows, self.screen, x, batch, [query])
            assert self.out.array().argmax() == best
        return counts


@pytest.fixture(scope="module")
def random_head():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((VOCAB, HIDDEN), np.float32).astype(np.float16).view(np.uint8)
    inputs = rng.standard_normal((N_INPUTS, HIDDEN), np.float32)
    return Head(EmbeddingRows("F16", data, VOCAB, HIDDEN, ""), inputs)


@pytest.fixture(scope="module")
def bundled_head():
    text = np.random.default_rng(1).integers(5, 300, 64).astype(np.int32)
    with weights.open(BUNDLED_MODEL) as files:
        model = Transformer(files, Pool(1 << 28), max_batch=N_INPUTS, context=N_INPUTS)
        hidden = model.forward(text, [(model.new_state(), N_INPUTS)], logits="hidden").copy()
        return Head(files.rows("lm_head"), hidden)


@pytest.mark.parametrize("n_threads", THREADS, ids=lambda n: f"{n}t")
@pytest.mark.parametrize("is_screened", [False, True], ids=["full", "screened"])
def test_head(random_head, is_screened, n_threads, timed, figures):
    h = random_head
    x, batch = operands.Matrix(h.inputs[:1]), operands.Batch(1, 1, n_threads).rows_only(1)
    data = h.codes.view(np.uint8) if is_screened else h.source.data

    def run():
        if is_screened:
            return ops.screen(h.out, h.rows, h.screen, x, batch, [LogitsQuery(1)])
        return ops.head(h.out, h.rows, x, batch)

    seconds, read = timed(run, lambda: ops.read_bandwidth(data.reshape(-1), n_threads), rounds=9)
    extra = {"survivors": run()[0]} if is_screened else {}
    n_bytes = data.nbytes + (h.bounds.nbytes if is_screened else 0)
    figures(
        ms=seconds * 1e3,
        gb_s=n_bytes / seconds / 1e9,
        read_gb_s=data.nbytes / read / 1e9,
        share=read / seconds,
        mb_a_token=n_bytes / 1e6,
        **extra,
    )


@pytest.mark.parametrize("n_threads", THREADS, ids=lambda n: f"{n}t")
def test_draw(random_head, n_threads, timed, figures):
    """A token sampled from the whole vocabulary at temperature 1: the screened head, then the draw,
    beside the full head and the same draw. Logits have a spread of 2.5: no few tokens have it all.
    """
    h, batch = random_head, operands.Batch(1, 1, n_threads).rows_only(1)
    x = operands.Matrix(h.inputs[:1] * np.float32(2.5 * HIDDEN**-0.5))
    logits, counts = h.out.array()[0], []

    def screened(position=0):
        draw = position, 0, 1.0, 1.0, 0.0
        counts.extend(ops.screen(h.out, h.rows, h.screen, x, batch, [LogitsQuery(1, draw=draw)]))
        return ops.sample(logits, *draw)

    def full(position=0):
        ops.head(h.out, h.rows, x, batch)
        return ops.sample(logits, position, 0, 1.0)

    assert [screened(seed) for seed in range(32)] == [full(seed) for seed in range(32)]
    seconds, whole = timed(screened, lambda: seconds_of(full), rounds=9)
    figures(ms=seconds * 1e3, full_ms=whole * 1e3, median=np.median(counts), greatest=max(counts))


@pytest.mark.parametrize("of", ["random", "bundled"])
@pytest.mark.parametrize(
    "query",
    [LogitsQuery(1), LogitsQuery(40), LogitsQuery(1, 3.0)],
    ids=["greedy", "top_k=40", "min_p=0.05"],
)
def test_survivors(request, of, query, benchmark, figures):
    h = request.getfixturevalue(f"{of}_head")
    counts = benchmark.pedantic(lambda: h.survivors(query), rounds=1)
    figures(
        median=np.median(counts),
        greatest=max(counts),
        rows=h.source.n_rows,
        share=np.mean(counts) / h.source.n_rows,
    )


@pytest.mark.parametrize("n_threads", THREADS, ids=lambda n: f"{n}t")
def test_derivation(random_head, n_threads, timed, figures):
    """What the first load of such a model takes longer, without the disk."""
    figures(seconds=timed(lambda: random_head.derive(n_threads), rounds=2))
