"""A state of fixed size that cannot be trimmed goes through all that deals with states: scheduler,
prefixes, sessions, their files and the memory plan. Text is always that of plain decoding."""

import dataclasses
import random
import weakref

import numpy as np
import pytest
from support.mock_model import EOT, MockTransformer
from support.recurrent_model import RecurrentTransformer, RunningHash
from support.requests import PROMPTS, alone, plain, request

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints.memory_plan import Planner, Settings, plan
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import ContextFull, FormatError, PoolExhausted
from bitnet.formats.gguf import GGUFFile
from bitnet.generation.prefix_cache import MIN_TOKENS, PrefixCache
from bitnet.generation.prefix_cache_disk import MIN_TOKENS_ON_DISK, PREFIX_SUFFIX, DiskPrefixCache
from bitnet.generation.scheduler import Scheduler
from bitnet.generation.session import Session
from bitnet.models.registry import ARCHITECTURES
from bitnet.models.sequence_state import attention_parts
from bitnet.runtime.pool import Pool

KINDS = [("hash",), ("kv", "hash"), ("hash", "kv")]
PLAIN = [alone(prompt=p, seed=i) for i, p in enumerate(PROMPTS)]


class Guesses:
    """Drafts out of the text as it will be, every so many tokens a wrong one."""

    drafted = accepted = 0

    def __init__(self, tokens, wrong_every):
        self.tokens, self.wrong_every = tokens, wrong_every

    def propose(self, tokens, n_max):
        after = self.tokens[len(tokens) : len(tokens) + min(n_max, 5)]
        return [
            EOT if (len(tokens) + i) % self.wrong_every == 0 else token
            for i, token in enumerate(after)
        ]

    def record(self, n_drafted, n_accepted):
        self.drafted += n_drafted
        self.accepted += n_accepted


def with_drafts(i, wrong_every=4):
    prompt = request(PROMPTS[i]).tokens
    drafts = Guesses([*prompt, *PLAIN[i].token_ids], wrong_every)
    return request(PROMPTS[i], seed=i, options={"drafts": drafts})


def check(requests):
    for i, one in enumerate(requests):
        assert (one.completion.token_ids, one.completion.text) == (
            PLAIN[i].token_ids,
            PLAIN[i].text,
        )


# ---------------------------------------------------------------------------------- the scheduler
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("max_batch", [5, 64])
@pytest.mark.parametrize("fair", [False, True])
def test_batches(kinds, max_batch, fair):
    scheduler = plain(RecurrentTransformer(kinds=kinds, max_batch=max_batch), slots=3, fair=fair)
    requests = [request(p, seed=i) for i, p in enumerate(PROMPTS)]
    scheduler.complete(requests)
    check(requests)
    assert not scheduler.transformer.open_parts


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("wrong_every", [1, 2, 3, 4, 100])
def test_a_draft_that_was_wrong_is_undone(kinds, wrong_every):
    scheduler = plain(RecurrentTransformer(kinds=kinds, max_batch=64), slots=3)
    requests = [with_drafts(i, wrong_every) for i in range(5)]
    scheduler.complete(requests)
    check(requests)
    drafted = sum(r.completion.drafted_tokens for r in requests)
    accepted = sum(r.completion.accepted_tokens for r in requests)
    assert 0 < accepted < drafted or wrong_every in (1, 100)


def test_accepted_tokens_are_read_once_more_and_no_others():
    """Where the state cannot go back a part of the way: from where the step began."""
    model = RecurrentTransformer(max_batch=64)
    plain(model).complete([with_drafts(0, wrong_every=4)])
    trimmable = MockTransformer(max_batch=64)
    plain(trimmable).complete([with_drafts(0, wrong_every=4)])
    assert sum(map(sum, trimmable.steps)) < sum(map(sum, model.steps)) < 60
    assert max(map(sum, model.steps)) <= 6


class Interrupts:
    """Calls a method, then raises KeyboardInterrupt, at the call of this number."""

    def __init__(self, at):
        self.at, self.n = at, 0

    def __call__(self, function):
        def interrupted(*arguments, **options):
            result = function(*arguments, **options)
            self.n += 1
            if self.n == self.at:
                raise KeyboardInterrupt
            return result

        return interrupted


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("where", ["before", "advance", "behind", "sampling"])
@pytest.mark.parametrize("max_batch", [5, 64])
@pytest.mark.parametrize("at", range(1, 14))
def test_an_interrupt_loses_nothing(kinds, where, max_batch, at, monkeypatch):
    """As ctrl-C raises it: before layers have written, while states advance one after the other,
    behind the step, between two samples."""
    model, interrupts = RecurrentTransformer(kinds=kinds, max_batch=max_batch), Interrupts(at)
    scheduler = plain(model, slots=2)
    requests = [with_drafts(i) for i in range(2)]
    if where == "before":
        model.on_forward = interrupts(lambda sequences: None)
    elif where == "advance":
        for part in (RunningHash, type(MockTransformer().new_parts(1)["kv"])):
            monkeypatch.setattr(part, "advance", interrupts(part.advance))
    elif where == "behind":
        model.forward = interrupts(model.forward)
    else:
        for one in requests:
            one.sample = interrupts(one.sample)
    for one in requests:
        scheduler.submit(one)
    n_interrupts = 0
    while not all(one.is_done for one in requests):
        try:
            assert scheduler.step()
        except KeyboardInterrupt:
            n_interrupts += 1
    check(requests)
    assert n_interrupts <= 1 and not model.open_parts


def test_a_step_that_fails_changes_nothing():
    """A draft without memory is given up; a request that fails does not take others down."""

    def on_forward(sequences):
        if any(1 < n < 8 for _, n in sequences):
            raise PoolExhausted(16, "hash", 0, 0, 0, {})

    model = RecurrentTransformer(max_batch=64, on_forward=on_forward)
    requests = [with_drafts(i) for i in (0, 1, 2)]
    short = request("short", seed=9)
    scheduler = plain(model, slots=4)
    for one in [*requests, short]:
        scheduler.submit(one)
    while scheduler.step():
        pass
    assert isinstance(requests[0].error, PoolExhausted) and isinstance(short.error, PoolExhausted)
    for i in (1, 2):
        assert requests[i].completion.token_ids == PLAIN[i].token_ids
    assert not model.open_parts


# --------------------------------------------------------------------------------------- prefixes
SYSTEM = "You are a patient clerk in a very small shop, and answer in one line. "


def ask(scheduler, ids, max_tokens=6):
    return scheduler.complete([request(ids, max_tokens=max_tokens)])[0]


def expected(ids, max_tokens=6):
    return alone(prompt=ids, max_tokens=max_tokens).token_ids


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_a_prefix_is_used_in_full_or_not_at_all(kinds):
    model = RecurrentTransformer(kinds=kinds, max_batch=256)
    scheduler = Scheduler(model, slots=4, prefix_cache=PrefixCache())
    prompt = list(SYSTEM.encode())
    done = ask(scheduler, prompt)
    longer = [*prompt, *done.token_ids, *b" And then?"]
    again = ask(scheduler, longer)
    assert again.cached_tokens == len(prompt) + 5  # all that the first had read
    assert again.token_ids == expected(longer)
    other = [*prompt, *b"Another question."]
    assert ask(scheduler, other).cached_tokens == 0
    assert ask(scheduler, other).token_ids == expected(other)
    assert ask(scheduler, longer).token_ids == expected(longer)
    scheduler.close()
    assert not model.open_parts


def state_of(model, tokens):
    state = model.new_state()
    model.forward(np.array(tokens, np.int32), [(state, len(tokens))], logits="none")
    return state


@pytest.mark.parametrize("in_files", [False, True])
def test_prefixes_against_a_list(in_files, tmp_path):
    """Random sequences kept and forked: the longest that begins a prompt, whole, is found."""
    rng, model, kept = random.Random(5), RecurrentTransformer(max_batch=256), []
    disk = DiskPrefixCache(tmp_path, 1 << 20, "a model", "f16", model.new_state)
    ours = PrefixCache(disk if in_files else None)
    least = MIN_TOKENS + (MIN_TOKENS_ON_DISK - 1 if in_files else 0)
    start = [3] * (least - 2)
    for _ in range(150):
        tokens = start + [rng.randrange(2) for _ in range(rng.randrange(1, 8))]
        if rng.random() < 0.3:
            ours.insert(tokens, state_of(model, tokens))
            if in_files:
                ours.clear()
            kept.append(tokens)
            continue
        fork = ours.fork(tokens)
        n = 0 if fork is None else fork.length
        lengths = [len(k) for k in kept if least <= len(k) < len(tokens) and k == tokens[: len(k)]]
        assert n == max(lengths, default=0)
        if fork is not None:
            logits = model.forward(np.array(tokens[n:], np.int32), [(fork, len(tokens) - n)])
            assert np.array_equal(logits[0], logits_after(tokens))
            fork.close()


def test_a_running_sequence_is_a_prefix_where_it_stands():
    scheduler = Scheduler(RecurrentTransformer(max_batch=16), slots=2, prefix_cache=PrefixCache())
    prompt = list(SYSTEM.encode())
    first = scheduler.submit(request(prompt))
    scheduler.step()
    assert first.state.length == 16
    second = scheduler.submit(request(prompt[:30], seed=2))
    scheduler.step()
    assert second.n_cached == 16 > MIN_TOKENS
    while scheduler.step():
        pass
    assert first.completion.token_ids == alone(prompt=prompt).token_ids
    assert second.completion.token_ids == alone(prompt=prompt[:30], seed=2).token_ids


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_prefixes_in_files(kinds, tmp_path):
    prompt = list(SYSTEM.encode()) * 3

    def scheduler():
        model = RecurrentTransformer(kinds=kinds, max_batch=256)
        disk = DiskPrefixCache(tmp_path, 1 << 20, "a model", "f16", model.new_state)
        return Scheduler(model, slots=2, prefix_cache=PrefixCache(disk))

    before = scheduler()
    reply = ask(before, prompt).token_ids
    before.close()
    assert len(list(tmp_path.glob("*" + PREFIX_SUFFIX))) == 1
    after = scheduler()
    longer = [*prompt, *reply, *b"?"]
    found = ask(after, longer)
    assert (found.cached_tokens, found.token_ids) == (len(prompt) + 5, expected(longer))
    after.close()
    # the shorter is the longer's beginning, and cannot be trimmed out of it
    assert len(list(tmp_path.glob("*" + PREFIX_SUFFIX))) == 2
    other = scheduler()
    assert ask(other, prompt[:200]).cached_tokens == 0
    assert ask(other, prompt[:200]).token_ids == expected(prompt[:200])
    other.close()


def test_nothing_is_written_in_a_forward_pass(tmp_path, monkeypatch):
    """Where memory is short, prefixes go to their files between two tries of a step."""
    model = RecurrentTransformer(max_batch=256)
    disk = DiskPrefixCache(tmp_path, 1 << 20, "a model", "f16", model.new_state)
    scheduler = Scheduler(model, slots=2, prefix_cache=PrefixCache(disk))
    ask(scheduler, list(b"x" * 200))
    inside, tries = [], []

    def on_forward(sequences):
        tries.append(len(scheduler.prefix_cache))
        if len(scheduler.prefix_cache):
            raise PoolExhausted(16, "hash", 0, 0, 0, {})

    def forward(*arguments, **options):
        inside.append(True)
        try:
            return RecurrentTransformer.forward(model, *arguments, **options)
        finally:
            inside.pop()

    save = disk.save
    monkeypatch.setattr(disk, "save", lambda *a: (inside and pytest.fail("inside"), save(*a)))
    model.on_forward, model.forward = on_forward, forward
    assert ask(scheduler, list(b"another")).token_ids == expected(list(b"another"))
    assert tries[:2] == [1, 0] and len(list(tmp_path.iterdir())) == 1


# --------------------------------------------------------------------------------------- sessions
@pytest.fixture(params=KINDS, ids="+".join)
def scheduler(request):
    return plain(RecurrentTransformer(kinds=request.param))


def session_of(scheduler, capacity=None):
    state = scheduler.transformer.new_state(capacity)
    return Session(scheduler, state, weakref.WeakSet(), lambda: "a model")


def logits_after(tokens):
    return MockTransformer().logits_after(tokens).astype(np.float32)


def test_a_session_goes_back_where_it_can(scheduler):
    with session_of(scheduler) as session:
        session.feed(range(40))  # three forward passes
        with pytest.raises(ValueError, match=r"trim: 39 \(0 or 40, where this model can go back"):
            session.trim(39)
        session.trim(40)
        with session.fork() as twin:
            assert np.array_equal(twin.decode(7), logits_after([*range(40), 7]))
        assert np.array_equal(session.decode(8), logits_after([*range(40), 8]))
        with pytest.raises(ValueError, match="length: 42"):
            session.trim(42)
        session.trim(0)
        assert session.token_ids == [] and session.length == 0
        assert np.array_equal(session.decode(9), logits_after([9]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_fails_in_a_session_is_undone(scheduler, n):
    calls = []

    def on_forward(sequences):
        calls.append(1)
        if len(calls) == n:
            raise PoolExhausted(16, "hash", 0, 0, 0, {})

    with session_of(scheduler) as session:
        session.feed([1, 2, 3])
        scheduler.transformer.on_forward = on_forward
        with pytest.raises(PoolExhausted):
            session.feed(range(40))
        assert session.token_ids == [1, 2, 3] and session.length == 3
        assert np.array_equal(session.feed([4, 5]), logits_after([1, 2, 3, 4, 5]))
        with pytest.raises(ValueError, match="outside the vocabulary"):
            session.feed([6, 10**6])
        assert np.array_equal(session.decode(6), logits_after([1, 2, 3, 4, 5, 6]))


def test_session_files(scheduler, tmp_path):
    path = tmp_path / "session.gguf"
    with session_of(scheduler) as session, session_of(scheduler) as other:
        session.feed(range(30))
        session.save(path)
        other.feed([5])
        other.restore(path)
        assert other.token_ids == list(range(30))
        assert np.array_equal(other.decode(7), logits_after([*range(30), 7]))
        assert np.array_equal(session.decode(7), logits_after([*range(30), 7]))
        data = bytearray(path.read_bytes())
        at = data.index(np.arange(30, dtype=np.int32).tobytes())
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"session\.checksum"):
            other.restore(path)
        assert other.length == 31
        assert np.array_equal(other.decode(8), logits_after([*range(30), 7, 8]))
    assert not scheduler.transformer.open_parts


def test_files_of_states_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "session.gguf"
    with session_of(plain(RecurrentTransformer())) as session:
        session.feed([1, 2])
        session.save(path)
    with session_of(plain(RecurrentTransformer(kinds=("kv", "hash")))) as other:
        with pytest.raises(FormatError, match="tokens: missing"):
            other.restore(path)
        assert other.length == 0
    with session_of(plain(RecurrentTransformer(kinds=("kv", "hash")))) as session:
        session.feed([1, 2])
        session.save(path)
    with session_of(plain(RecurrentTransformer())) as other:
        with pytest.raises(FormatError, match="n_tensors: 2"):
            other.restore(path)
        assert other.length == 0


def test_a_session_longer_than_the_capacity():
    scheduler = plain(RecurrentTransformer(kinds=("hash", "kv")))
    with session_of(scheduler, capacity=20) as session:
        session.feed(range(10))
        with pytest.raises(ContextFull):
            session.feed(range(20))  # the second forward pass has no room
        assert session.token_ids == list(range(10))
        assert np.array_equal(session.decode(7), logits_after([*range(10), 7]))


# --------------------------------------------------------------------- with a model, and its plan
@pytest.fixture
def add_hash(monkeypatch):
    """A function that puts a hash beside keys and values in the bundled model's architecture."""

    def parts(config, pool, **options):
        def take(shape, dtype):
            return pool.array(shape, dtype, "hash")

        return {**attention_parts(config, pool, **options), "hash": RunningHash(take)}

    def add():
        family = open_checkpoint(BUNDLED_MODEL).config.family
        changed = dataclasses.replace(ARCHITECTURES[family], state_parts=parts)
        monkeypatch.setitem(ARCHITECTURES, family, changed)

    return add


PROSE = "And the king said unto the people, Go ye out. And the people went out. "


def run(path):
    """Texts with drafts and prefixes, figures of them, and logits behind a restored session."""
    prompts = [PROSE * 3, PROSE + "And the king", PROSE * 3 + "Go ye"]
    options = {"max_tokens": 40, "temperature": 0.0, "speculative": "ngram"}
    with bitnet.load(threads=1, slots=3) as model:
        done = [c for _ in range(2) for c in model.generate(prompts, **options)]
        with model.session() as session:
            session.feed(range(200))
            session.save(path)
            session.restore(path)
            last = session.decode(3).tobytes()
    n_wrong = sum(c.drafted_tokens - c.accepted_tokens for c in done)
    return [c.token_ids for c in done], last, n_wrong


def test_the_text_of_a_model_is_the_same(add_hash, tmp_path):
    *expected_text, _ = run(tmp_path / "plain.gguf")
    add_hash()
    *text, n_wrong = run(tmp_path / "hybrid.gguf")
    assert text == expected_text and n_wrong > 0
    names = [list(GGUFFile(tmp_path / name).tensors) for name in ("plain.gguf", "hybrid.gguf")]
    assert names[1] == [*names[0], "hash"]


@pytest.mark.parametrize(("context", "slots"), [(300, 1), (512, 3)])
def test_the_plan_counts_it(add_hash, context, slots):
    before = Planner(open_checkpoint(BUNDLED_MODEL)).private(Settings(context, slots=slots))
    add_hash()
    planner = Planner(open_checkpoint(BUNDLED_MODEL))
    needs = {n.purpose: n for n in plan(planner.config, context=context, slots=slots)}
    assert (needs["hash"].nbytes, needs["hash"].what) == (16 * slots, f"hashes: {slots}")
    assert planner.private(Settings(context, slots=slots, snapshots=0)) == before + 16 * slots
    new_state, pool = ARCHITECTURES[planner.config.family].new_state, Pool(1 << 24)
    states = [new_state(planner.config, pool, capacity=context, dtype="f16") for _ in range(slots)]
    assert pool.in_use == 0
    for state in states:
        state.reserve(context)
        assert state.nbytes == state.full_nbytes == needs["kv"].nbytes // slots + 16
    assert pool.stats().by_purpose["kv"][0] == needs["kv"].nbytes
