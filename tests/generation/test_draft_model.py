"""A small model that drafts: whatever it says, texts are those of plain decoding."""

import dataclasses
import itertools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mock_model import END, VOCAB, ByteTokenizer, MockTransformer
from test_prompt_lookup import CODE, PROSE, SAMPLINGS, Evens, assert_same

import bitnet
from bitnet import FormatError, PoolExhausted
from bitnet.api.load import BUNDLED_MODEL
from bitnet.generation import draft_model as module
from bitnet.generation.detokenizer import Detokenizer
from bitnet.generation.draft_model import DraftModel
from bitnet.generation.draft_policy import Losses, Savings
from bitnet.generation.prefix_cache import PrefixCache
from bitnet.generation.request import Request
from bitnet.generation.sampling import Sampling, make_sampler
from bitnet.generation.scheduler import Scheduler
from bitnet.generation.stopping import StopConditions


def make_eager(patch, wrong=0.2, seed=1, savings=9.0):
    """Drafts of any length at any time, of which some tokens are wrong: no time decides.

    savings: seconds for reading, enough for all of a text, or 0 for its end alone.
    """
    rng, guess = random.Random(seed), Request.guess

    def lengths(target, draft, candidates, n_sequences, n_rows):
        found = []
        for candidate in candidates:
            found.append(rng.randint(0, min(candidate.room, n_rows - sum(found))))
        return found

    def guess_or_not(self, logits, draft):
        token = guess(self, logits, draft)
        return rng.randrange(len(logits)) if rng.random() < wrong else token

    patch.setattr(module, "best_lengths", lengths)
    patch.setattr(module, "MIN_PLAIN", 0)
    patch.setattr(module, "MAX_PLAIN_AGE", 1 << 30)
    patch.setattr(module, "N_ASLEEP", 1)
    patch.setattr(Request, "guess", guess_or_not)
    patch.setattr(
        Savings, "seconds", property(lambda self: savings, lambda self, value: None), False
    )
    patch.setattr(Losses, "left", lambda self, plain: rng.choice([9.0, 9.0, 1e-4, 0.0]))


@pytest.fixture
def eager(monkeypatch):
    make_eager(monkeypatch)


@pytest.fixture(scope="module")
def models():
    """(the bundled model, the same with itself as its small model)."""
    limits = {"slots": 3, "context": 400, "threads": 1}
    with bitnet.load(**limits) as plain, bitnet.load(speculative=plain, **limits) as drafted:
        yield plain, drafted


# ----------------------------------------------------------------------------- the same text
@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from([PROSE * 3, CODE * 2, "It was", "la la la"]), min_size=1, max_size=5),
    SAMPLINGS,
    st.sampled_from(["stop", "window"]),
    st.integers(0, 99),
)
def test_texts_are_those_of_plain_decoding(models, prompts, options, context_end, seed):
    with pytest.MonkeyPatch.context() as patch:
        make_eager(patch, seed=seed, savings=9.0 * (seed % 2))
        plain, drafted = (m.generate(prompts, context_end=context_end, **options) for m in models)
    for a, b in zip(plain, drafted, strict=True):
        assert_same(*(dataclasses.replace(c, cached_tokens=0) for c in (a, b)))


def test_the_small_model_has_the_noise_of_the_position(models, monkeypatch):
    """One that drafts for itself is always right: greedy, sampled, with penalties and a bias."""
    make_eager(monkeypatch, wrong=0.0)
    n_drafted = 0
    for options in (
        {"temperature": 0.0},
        {"temperature": 1.2, "seed": 3},
        {"temperature": 0.9, "seed": 4, "top_k": 20, "top_p": 0.9, "logit_bias": {13: 3.0}},
        {"temperature": 0.9, "seed": 5, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    ):
        done = models[1].generate([PROSE, "It was", "la la"], max_tokens=60, **options)
        for completion in done:
            # what an end token cut off was right as well, and is not counted
            assert completion.drafted_tokens - completion.accepted_tokens < 9
            n_drafted += completion.drafted_tokens
    assert n_drafted > 100


@pytest.mark.parametrize("n_left", [1, 2, 9])
def test_the_end_of_the_context_is_met_exactly(eager, n_left):
    limits = {"context": 150 + n_left, "threads": 1, "prefix_cache": False}
    prompt, options = [1, 2, 3] * 50, {"temperature": 0.0, "logit_bias": {1: 40.0, 2: 39.9}}
    with bitnet.load(**limits) as plain, bitnet.load(speculative=plain, **limits) as model:
        for method in ("off", "draft"):
            done = model.generate(prompt, speculative=method, seed=1, **options)
            assert (done.finish_reason, done.completion_tokens) == ("context", n_left + 1)
            assert done.token_ids == plain.generate(prompt, seed=1, **options).token_ids
        with pytest.raises(bitnet.ContextFull):
            model.generate(prompt, context_end="error", **options)


def test_conversations_streams_and_sessions(models, eager):
    plain, model = models
    said = [{"role": "user", "content": "Who art thou?"}]
    for _ in range(3):  # each turn begins like the one before, for both models
        reply = model.chat(said, max_tokens=30, temperature=0.7, seed=2)
        assert reply.text == plain.chat(said, max_tokens=30, temperature=0.7, seed=2).text
        again = model.chat_stream(said, max_tokens=30, temperature=0.7, seed=2)
        assert "".join(again) == reply.text
        said += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "Why?"}]
    assert reply.cached_tokens > 8
    with model.session() as session, plain.session() as other:  # its owner chooses the tokens
        assert np.array_equal(session.feed([1, 2, 3]), other.feed([1, 2, 3]))
        session.trim(2)
        with session.fork() as twin:
            other.trim(2)
            assert np.array_equal(twin.feed([7]), other.feed([7]))


def test_all_memory_is_given_back(eager):
    limits = {"threads": 1, "slots": 2, "prefix_cache": False}
    with bitnet.load(speculative=BUNDLED_MODEL, **limits) as model:
        model.generate([PROSE, CODE, "It was"], max_tokens=20)
        stream = model.stream(PROSE, max_tokens=50)
        next(stream)
        stream.close()
        assert model.pool_stats().by_purpose["kv"][0] == 0


# --------------------------------------------------------------- the scheduler with mock models
def script(tokens):
    """The alphabet, again and again."""
    return 97 + (len(tokens) * 7) % 5


def right(tokens):
    """The same by the latest token, for whoever has not read all of them."""
    return 97 + (tokens[-1] + 5) % 5


def half_right(tokens):
    """Behind a text of this length always the same."""
    return right(tokens) if random.Random(len(tokens)).random() < 0.5 else 96


def request(drafts, prompt="ababab", max_tokens=40, options=None, **sampling):
    sampler = make_sampler(Sampling(**{"temperature": 1.0, "seed": 1, **sampling}), VOCAB)
    stopping = StopConditions(max_tokens, eos_ids=frozenset((END,)))
    ids, text = ByteTokenizer().encode(prompt), Detokenizer(ByteTokenizer().stream())
    return Request(ids, sampler, stopping, text, drafts=drafts, **(options or {}))


def scheduler(draft, target=None, slots=4, keeps=False, **options):
    drafts = DraftModel(draft, slots=slots, prefix_cache=PrefixCache() if keeps else None)
    target = target or MockTransformer(script, **options)
    return Scheduler(target, slots=slots, draft_model=drafts)


def complete(engine, *requests):
    done = engine.complete(requests)
    assert not engine.draft_model._live
    return [c.token_ids for c in done]


def plain(*requests):
    return [c.token_ids for c in Scheduler(MockTransformer(script), slots=4).complete(requests)]


def test_drafts_save_steps(eager):
    engine = scheduler(MockTransformer(half_right), max_batch=64)
    drafts = engine.new_drafts("draft")
    assert complete(engine, request(drafts, max_tokens=80)) == plain(request(None, max_tokens=80))
    assert 10 < drafts.accepted < drafts.drafted
    assert len(engine.transformer.steps) < 75
    assert max(n for step in engine.transformer.steps[1:] for n in step) <= 9
    assert all(sum(step) <= 9 for step in engine.transformer.steps[1:])


def test_several_sequences_draft_side_by_side(eager, monkeypatch):
    monkeypatch.setattr(Losses, "left", lambda self, plain: 9.0)
    monkeypatch.setattr(module, "best_lengths", lambda t, d, candidates, *n: [2] * len(candidates))
    draft = MockTransformer(half_right, max_batch=64)
    engine = scheduler(draft, max_batch=64)
    kinds = ["draft", "draft", "ngram", "off"]
    requests = [request(engine.new_drafts(kind), seed=i) for i, kind in enumerate(kinds)]
    assert complete(engine, *requests) == plain(*(request(None, seed=i) for i in range(4)))
    assert [len(step) for step in draft.steps].count(2) > 20
    assert max(map(sum, engine.transformer.steps[1:])) <= 4 + 8
    assert not draft.open_parts


def test_logprobs_and_constraints(eager):
    found = []
    for engine in (scheduler(MockTransformer(half_right)), Scheduler(MockTransformer(script))):
        drafts = engine.new_drafts("draft") if hasattr(engine.draft_model, "costs") else None
        one = request(drafts, options={"n_logprobs": 2, "constraint": Evens()})
        engine.complete([one])
        assert one.constraint.accepted == one.completion.token_ids
        found.append((one.logprobs, one.constraint.accepted))
    assert found[0] == found[1]


def test_a_small_context_begins_anew(eager):
    """Where the small model has room for fewer tokens than the text has, for its end again."""
    for context in (1, 2, 16, 24, 40):
        draft = MockTransformer(half_right, context=context)
        engine = scheduler(draft)
        drafts = engine.new_drafts("draft")
        done = complete(engine, request(drafts, prompt="ab" * 30, max_tokens=70))
        assert done == plain(request(None, prompt="ab" * 30, max_tokens=70))
        assert drafts.drafted > 10 or context < 16


def test_states_are_kept_for_prompts_that_begin_alike(eager):
    draft = MockTransformer(half_right, max_batch=64)
    engine = scheduler(draft, keeps=True)
    first = request(engine.new_drafts("draft"))
    engine.complete([first])
    kept = engine.draft_model._prefix_cache
    assert len(kept) == 1
    n_before = sum(map(sum, draft.steps))
    second = request(engine.new_drafts("draft"), max_tokens=60)
    second.tokens[:] = [*first.tokens, 97]
    second.n_prompt = second._n_settled = len(second.tokens)
    engine.complete([second])
    assert second.drafts.begin == 0 and len(kept) == 1
    assert sum(map(sum, draft.steps)) - n_before < len(second.tokens) + 60
    engine.close()
    assert not draft.open_parts


def test_memory_goes_to_the_text_first(eager):
    """Without it a small model drafts nothing; what a step needs of its memory it gives back."""
    steps = []

    def none_left(sequences):
        if len(steps) > 3:
            raise PoolExhausted(1, "kv", 0, 0, 0, {})
        steps.append(None)

    engine = scheduler(MockTransformer(half_right))
    engine.draft_model.transformer.on_forward = none_left
    drafts = engine.new_drafts("draft")
    assert complete(engine, request(drafts)) == plain(request(None))

    target = MockTransformer(script)
    engine = scheduler(MockTransformer(half_right), target)

    def wants_memory(sequences):
        if engine.draft_model._live:
            raise PoolExhausted(1, "kv", 0, 0, 0, {})

    target.on_forward = wants_memory
    assert complete(engine, request(engine.new_drafts("draft"))) == plain(request(None))


@pytest.mark.parametrize("what", ["logits", "file"])
def test_a_small_model_that_fails_drafts_no_more(eager, caplog, what):
    def fail(sequences):
        if what == "file":
            raise FormatError("small.gguf", "size", 1, "it has shrunk")
        draft.script = None
        draft.logits_after = lambda tokens: np.full(VOCAB, np.nan)

    draft = MockTransformer(half_right)
    engine = scheduler(draft)
    drafts = engine.new_drafts("draft")
    one = request(drafts, max_tokens=80)
    engine.submit(one)
    while not drafts.accepted:
        engine.step()
    draft.on_forward = fail
    while not one.is_done:
        engine.step()
    assert [one.completion.token_ids] == plain(request(None, max_tokens=80))
    assert len(caplog.records) == 1 and "nothing is drafted any more" in caplog.text
    assert not draft.open_parts


@pytest.mark.parametrize("at", range(4, 30, 3))
def test_an_interrupt_in_the_small_model_loses_nothing(eager, at):
    """Ctrl-C, or what a signal handler raises: it is the caller's, and the text goes on."""
    for error in (KeyboardInterrupt, TimeoutError):
        calls, raised = [], []

        def interrupt(sequences, calls=calls, error=error):
            calls.append(None)
            if len(calls) == at:
                raise error

        engine = scheduler(MockTransformer(half_right))
        engine.draft_model.transformer.on_forward = interrupt
        one = request(engine.new_drafts("draft"), max_tokens=60)
        engine.submit(one)
        while not one.is_done:
            try:
                engine.step()
            except error as caught:
                raised.append(caught)
        assert [one.completion.token_ids] == plain(request(None, max_tokens=60))
        assert len(raised) == (len(calls) >= at)


# ----------------------------------------------------------------------- what it takes and gains
class Clock:
    """Stands for time: it goes by what steps are said to cost."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def step(self, cost):
        def on_forward(sequences):
            self.now += cost(sum(n for _, n in sequences))

        return on_forward


def seconds(monkeypatch, agreement, *, rows=0.05, small=0.2, method="draft", n=200, n_sequences=1,
            busy=1):  # fmt: skip
    """How long a generation of n tokens takes, in plain steps. rows: what a row more costs; small:
    what a step of the small model costs; busy: times that, before there is a text."""
    clock, rng = Clock(monkeypatch), random.Random(0)

    def says(tokens):
        return right(tokens) if rng.random() < agreement else 96

    target = MockTransformer(script, max_batch=64)
    target.on_forward = clock.step(lambda n: 1 + rows * (n - 1))
    draft = MockTransformer(says, max_batch=64)
    draft.on_forward = clock.step(lambda n: busy * small * (1 + rows * (n - 1)))
    engine = Scheduler(
        target, slots=4, draft_model=DraftModel(draft, slots=4, clock=lambda: clock.now)
    )
    begin, busy = clock.now, 1
    requests = [request(engine.new_drafts(method), max_tokens=n) for _ in range(n_sequences)]
    engine.complete(requests)
    return clock.now - begin


@pytest.mark.parametrize("n_sequences", [1, 3])
@pytest.mark.parametrize("agreement", [0.0, 0.3, 0.9])
def test_never_slower_than_0_97_of_plain_decoding(monkeypatch, agreement, n_sequences):
    for rows, small in itertools.product([0.02, 0.2, 0.6], [0.1, 0.3, 1.0]):
        costs = {"rows": rows, "small": small, "n_sequences": n_sequences}
        without = seconds(monkeypatch, agreement, method="off", **costs)
        assert without / seconds(monkeypatch, agreement, **costs) > 0.97, costs


def test_a_machine_that_was_busy_at_the_beginning(monkeypatch):
    """Steps of the small model that were held up while it was loaded are measured again."""
    without = seconds(monkeypatch, 0.9, method="off", n=400)
    assert without / seconds(monkeypatch, 0.9, n=400, busy=30) > 1.3


@pytest.mark.parametrize(("agreement", "gain"), [(0.5, 1.1), (0.7, 1.3), (0.9, 1.7)])
def test_what_is_gained_where_rows_are_nearly_free(monkeypatch, agreement, gain):
    without = seconds(monkeypatch, agreement, method="off")
    assert without / seconds(monkeypatch, agreement) > gain
