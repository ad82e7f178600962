"""Models some of whose layers have a state: what deals with sequences gives the same text, or says
that it cannot."""

import contextlib
import dataclasses

import numpy as np
import pytest
from support import hybrid_models as models

import bitnet
from bitnet.checkpoints.memory_plan import plan
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.compute import ops
from bitnet.errors import ContextFull, FormatError
from bitnet.models.recurrent_state import DeltaNetConfig

STATE_BYTES = 3 * 4 * (3 * 1024 + 4 * 128 * 128)  # three layers: taps of 1024 channels, four heads
STORED = np.load(models.GGUF.parent / "reference.npz", allow_pickle=False)
IDS = np.resize(STORED["ids_0"], 60).tolist()


def load(**options):
    return bitnet.load(models.GGUF, **({"threads": 1} | options))


@pytest.fixture(scope="module")
def logits():
    with load() as model:
        return model.logits(IDS)


def test_a_session_goes_on_from_forks_and_files(logits, tmp_path):
    with load() as model, model.session() as session:
        session.feed(IDS[:21])
        session.save(tmp_path / "saved")
        with session.fork() as twin:
            twin.feed(IDS[5:50])
            assert (session.feed(IDS[21:]) == logits[-1]).all()
        with model.session() as other:
            other.restore(tmp_path / "saved")
            assert other.token_ids == IDS[:21]
            assert (other.feed(IDS[21:]) == logits[-1]).all()
    damaged = bytearray((tmp_path / "saved").read_bytes())
    damaged[-1000] ^= 1
    (tmp_path / "saved").write_bytes(damaged)
    with load() as model, model.session() as session, pytest.raises(FormatError):
        session.restore(tmp_path / "saved")


def test_a_session_says_that_it_cannot_go_back(logits):
    with load() as model, model.session() as session:
        session.feed(IDS)
        with pytest.raises(ValueError, match=r"trim: 59 \(0 or 60, where this model can go back"):
            session.trim(59)
        session.trim(60)
        session.trim(0)
        assert (session.feed(IDS) == logits[-1]).all()


class Interrupt:
    """Raises KeyboardInterrupt in ops.delta_rule, at the call of this number."""

    def __init__(self, monkeypatch, at):
        self.at, self.n, self.rule = at, 0, ops.delta_rule
        monkeypatch.setattr(ops, "delta_rule", self)

    def __call__(self, *arguments):
        self.n += 1
        if self.n == self.at:
            raise KeyboardInterrupt
        self.rule(*arguments)


@pytest.mark.parametrize("at", range(1, 7))
def test_a_session_is_as_it_was_behind_an_interrupt(logits, monkeypatch, at):
    """A layer has been written then: its tokens are read once more. Six calls: two steps."""
    with load() as model, model.session() as session:
        first = session.feed(IDS[:30]).copy()
        Interrupt(monkeypatch, at)
        with pytest.raises(KeyboardInterrupt):
            session.feed(IDS[30:45])
            session.feed(IDS[45:])
        n = 30 if at < 4 else 45
        assert session.length == n and session.token_ids == IDS[:n]
        with pytest.raises(ContextFull):
            session.feed([1] * 600)
        assert session.length == n
        with session.fork() as twin:
            assert (twin.feed(IDS[n:]) == logits[-1]).all()
        assert (session.feed(IDS[n:]) == logits[-1]).all()
        assert (first == logits[29]).all()


def texts(model, **options):
    prompts = [IDS[:40], IDS[10:], [5, 6, 7, 5, 6, 7, 5, 6]]
    found = model.generate(prompts, max_tokens=12, temperature=0, ignore_eos=True, **options)
    return [one.token_ids for one in found]


def test_requests_are_as_they_were_behind_an_interrupt(monkeypatch):
    with load(slots=3) as model:
        expected = texts(model)
    for at in (1, 2, 8, 20, 29):
        with load(slots=3) as model, monkeypatch.context() as patch:
            requests = [
                model.request(ids, max_tokens=12, temperature=0, ignore_eos=True)
                for ids in (IDS[:40], IDS[10:], [5, 6, 7, 5, 6, 7, 5, 6])
            ]
            for one in requests:
                model.scheduler.submit(one)
            interrupt = Interrupt(patch, at)
            while not all(one.is_done for one in requests):
                with contextlib.suppress(KeyboardInterrupt):
                    model.scheduler.step()
            assert interrupt.n > at
            assert [one.result().token_ids for one in requests] == expected


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_speculation_changes_no_text(kv_dtype):
    """Through checkpoints of the state: what was drafted wrong is undone, what was right is read
    once more."""
    with load(slots=3, kv_dtype=kv_dtype) as model:
        expected = texts(model)
        found = model.generate(
            [IDS[:40], IDS[10:], [5, 6, 7, 5, 6, 7, 5, 6]], max_tokens=12, temperature=0,
            ignore_eos=True, speculative="ngram",
        )  # fmt: skip
        assert [one.token_ids for one in found] == expected
        assert sum(one.drafted_tokens for one in found) > 0


def test_a_window_is_refused():
    with load(context=300) as model:
        with pytest.raises(ValueError, match="context_end: 'window' is not possible"):
            model.generate(IDS, max_tokens=2, context_end="window")
        with pytest.raises(ValueError, match="context_end: 'window' is not possible"):
            model.session(context_end="window")
        assert model.generate(IDS, max_tokens=2).completion_tokens == 2


def test_the_state_is_in_plan_and_pool():
    with load(slots=2, prefix_cache=False) as model:
        planned = {need.purpose: need for need in model.needs}
        assert planned["state"].nbytes == 2 * STATE_BYTES
        assert "DeltaNet" in planned["state"].what
        with model.session() as session, model.session() as other:
            assert "state" not in model.pool_stats().by_purpose
            session.feed(IDS[:3])
            held = model.pool_stats().by_purpose["state"][0]
            assert STATE_BYTES <= held <= STATE_BYTES + 4096
            with session.fork():
                assert model.pool_stats().by_purpose["state"][0] == held
            other.feed(IDS[:3])
            assert model.pool_stats().by_purpose["state"][0] <= planned["state"].nbytes + 8192
        assert model.pool_stats().by_purpose.get("state", (0,))[0] == 0


def test_memory_that_is_too_small_is_refused_before_anything_is_read():
    with pytest.raises(bitnet.MemoryLimitExceeded, match="state"):
        load(memory_limit="8MiB")


def test_the_plan_of_27b_fits_a_gibibyte():
    """8,192 tokens with int8 keys and values, the state and two snapshots; weights are mapped."""
    layers = tuple((i + 1) % 4 != 0 for i in range(64))
    config = dataclasses.replace(
        open_checkpoint(models.GGUF).config, hidden_size=5120, intermediate_size=17408,
        num_hidden_layers=64, num_attention_heads=24, num_key_value_heads=4, head_dim=256,
        vocab_size=248320, rotary_dim=64,
        delta_net=DeltaNetConfig(layers, 16, 48, 128, 128, 4, True, False),
    )  # fmt: skip
    needs = plan(
        config, context=8192, kv_dtype="int8", threads=8, activation_bits=16, snapshots=2
    )  # fmt: skip
    state = next(need for need in needs if need.purpose == "state")
    assert state.nbytes == 3 * (150_994_944 + 5_898_240)
    assert sum(need.nbytes for need in needs) < 1 << 30
