"""Speculation: whatever is drafted, the tokens, texts and figures are those of plain decoding."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mock_model import END, VOCAB, ByteTokenizer, MockTransformer

import bitnet
from bitnet import ContextFull, PoolExhausted
from bitnet.generation.detokenizer import Detokenizer
from bitnet.generation.prompt_lookup import MAX_PAUSE, NgramDrafts, lookup
from bitnet.generation.request import Request
from bitnet.generation.sampling import Sampling, make_sampler
from bitnet.generation.scheduler import DRAFT_ROWS, Scheduler
from bitnet.generation.stopping import StopConditions

PROSE = "And the king said unto the people, Go ye out. And the people went out. "
CODE = "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\n"


@pytest.fixture(scope="module")
def model():
    with bitnet.load(slots=3, context=512, prefix_cache=False, threads=1) as model:
        yield model


def both(model, prompt, **options):
    """(plain, speculative) completions."""
    return [model.generate(prompt, speculative=kind, **options) for kind in (None, "ngram")]


def assert_same(plain, drafted):
    figures = ("prompt_tps", "generation_tps", "drafted_tokens", "accepted_tokens")
    without = dict.fromkeys(figures, 0)
    assert dataclasses.replace(plain, **without) == dataclasses.replace(drafted, **without)


# --------------------------------------------------------------------------- what is drafted
@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("abcXabc", 3, "Xab"),
        ("abcXabc", 1, "X"),
        ("abcXabc", 9, "XabcXabcX"),
        ("abcXabcYabc", 2, "Ya"),  # the latest of several
        ("1234X.234Y.1234", 1, "X"),  # the longest before the latest
        ("aaaa", 3, "aaa"),
        ("ab", 4, ""),
        ("a", 4, ""),
        ("", 4, ""),
        ("abcdab", 0, ""),
        ("abXab", 4, ""),  # two tokens are no reason
    ],
)
def test_what_followed_the_longest_latest_match(text, n, expected):
    assert "".join(map(chr, lookup(text, n))) == expected


def test_drafts_grow_while_they_are_right_and_pause_when_they_are_not():
    drafts, tokens, lengths = NgramDrafts(), [7, 8, 9] * 5, []
    for right in (1, 1, 1, 0, 0, 0, 1):
        pause = 0
        while not (draft := drafts.propose(tokens, 8)):
            pause += 1
            tokens.append(tokens[-3])
        lengths.append((pause, len(draft)))
        drafts.record(len(draft), len(draft) if right else 0)
    assert lengths == [(0, 3), (0, 6), (0, 8), (0, 8), (1, 3), (2, 3), (4, 3)]
    assert (drafts.drafted, drafts.accepted) == (34, 20)
    for _ in range(20):
        drafts.record(3, 0)
    assert [bool(drafts.propose(tokens, 2)) for _ in range(MAX_PAUSE + 1)].index(True) == 16


def test_a_draft_half_right_is_followed_by_one_of_that_length():
    drafts = NgramDrafts()
    drafts.record(8, 4)
    assert len(drafts.propose([1, 2] * 9, 99)) == 5
    assert len(drafts.propose([1, 2] * 9, 3)) == 3


def test_every_token_id_has_a_character():
    tokens = [0, 0xD800, 0xDFFF, 262143, 5] * 2
    assert NgramDrafts().propose(tokens, 3) == [0, 0xD800, 0xDFFF]


# ----------------------------------------------------------------------------- the same text
SAMPLINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 0.8, 1.5]),
        "seed": st.integers(0, 3),
        "top_k": st.sampled_from([0, 5]),
        "top_p": st.sampled_from([1.0, 0.9]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "logit_bias": st.sampled_from([{}, {13: 4.0}]),
        "max_tokens": st.integers(1, 40),
        "stop": st.sampled_from([(), ("the",), (", and",)]),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([PROSE * 3, CODE * 2, "And he said", "the " * 20]), SAMPLINGS)
def test_text_is_that_of_plain_decoding(model, prompt, options):
    assert_same(*both(model, prompt, **options))


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.sampled_from([PROSE, CODE, "It was", "la la la la"]), min_size=2, max_size=6),
    SAMPLINGS,
)
def test_batches(model, prompts, options):
    for pair in zip(*both(model, prompts, **options), strict=True):
        assert_same(*pair)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 16).flatmap(lambda n: st.lists(st.integers(0, n), min_size=2, max_size=40)),
    st.integers(1, 60),
    st.integers(0, 3),
)
def test_random_tokens(model, prompt, max_tokens, seed):
    assert_same(*both(model, prompt, max_tokens=max_tokens, temperature=1.0, top_k=2, seed=seed))


def test_repetition_is_drafted_and_saves_steps(model):
    plain, drafted = both(model, PROSE * 4, temperature=0.0, seed=1, max_tokens=80)
    assert_same(plain, drafted)
    assert plain.drafted_tokens == plain.accepted_tokens == 0
    assert 20 < drafted.accepted_tokens < drafted.drafted_tokens


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("n_left", [1, 2, 5, 9])
def test_the_end_of_the_context_is_met_exactly(kv_dtype, n_left):
    prompt = [1, 2, 3] * 50
    limits = {"context": 150 + n_left, "kv_dtype": kv_dtype, "prefix_cache": False}
    with bitnet.load(threads=1, **limits) as model:
        options = {"temperature": 0.0, "seed": 1, "logit_bias": {1: 40.0, 2: 39.9, 3: 39.8}}
        plain, drafted = both(model, prompt, **options)
        assert_same(plain, drafted)
        assert (drafted.finish_reason, drafted.completion_tokens) == ("context", n_left + 1)
        with pytest.raises(ContextFull):
            model.generate(prompt, context_end="error", speculative="ngram", **options)


def test_streams_and_prefixes():
    """What a speculative request leaves behind is a prefix like any other."""
    with bitnet.load(threads=1) as model:
        options = {"temperature": 0.0, "max_tokens": 50, "speculative": "ngram"}
        stream = model.stream(PROSE * 3, **options)
        assert "".join(stream) == stream.completion.text
        longer = model.tokenizer.encode(PROSE * 3) + stream.completion.token_ids
        after = [model.generate(longer, **options) for _ in range(2)]
        assert after[0].cached_tokens == len(longer) - 1
        with bitnet.load(threads=1, prefix_cache=False) as other:
            alone = other.generate(longer, temperature=0.0, max_tokens=50)
        assert after[0].token_ids == after[1].token_ids == alone.token_ids


def test_another_kind_is_refused(model):
    with pytest.raises(ValueError, match="speculative: 'trie' \\(ngram or draft or off\\)"):
        model.generate("And", speculative="trie")


# ----------------------------------------------------------------- the engine on a mock model
class Evens:
    """A constraint: even tokens only; keeps what it accepted."""

    def __init__(self):
        self.accepted = []

    def allowed(self):
        return np.arange(VOCAB) % 2 == 0

    def accept(self, token_id):
        self.accepted.append(token_id)


class Wrong:
    """Drafts that are never right."""

    drafted = accepted = 0

    def propose(self, tokens, n_max):
        self.n_max = n_max
        return [END] * n_max

    def record(self, n_drafted, n_accepted):
        assert n_accepted == 0


def request(drafts=None, prompt="ababab", max_tokens=30, options=None, **sampling):
    sampler = make_sampler(Sampling(**{"temperature": 1.0, "seed": 1, **sampling}), VOCAB)
    text = Detokenizer(ByteTokenizer().stream())
    stopping = StopConditions(max_tokens, eos_ids=frozenset((END,)))
    ids = ByteTokenizer().encode(prompt)
    return Request(ids, sampler, stopping, text, drafts=drafts, **(options or {}))


def loop(tokens):
    """A script: the alphabet, again and again."""
    return 97 + (len(tokens) * 7) % 5


def complete(*requests, **options):
    engine = Scheduler(MockTransformer(loop, **options), slots=4)
    done = engine.complete(requests)
    assert not engine.transformer.open_parts
    return done, engine.transformer.steps


def test_logprobs_and_constraints():
    found = []
    for drafts in (None, NgramDrafts()):
        options = {"n_logprobs": 2, "constraint": Evens()}
        one = request(drafts, max_tokens=40, options=options)
        complete(one)
        assert one.constraint.accepted == one.completion.token_ids
        found.append((one.logprobs, one.constraint.accepted))
    assert found[0] == found[1]
    assert len(found[0][0]) == 40


def test_steps_take_as_many_rows_as_there_are():
    (done,), steps = complete(request(NgramDrafts(), max_tokens=60), max_batch=64)
    assert done.accepted_tokens > 30
    assert max(n for step in steps[1:] for n in step) == 1 + DRAFT_ROWS
    assert len(steps) < 25
    (one, *_), steps = complete(*(request(NgramDrafts(), seed=i) for i in range(4)), max_batch=7)
    assert one.token_ids == complete(request())[0][0].token_ids
    assert max(map(sum, steps)) == 7
    _, steps = complete(*(request(NgramDrafts(), seed=i) for i in range(4)), max_batch=64)
    assert max(map(sum, steps[1:])) == 4 + DRAFT_ROWS


def test_what_is_wrong_is_forgotten():
    drafts = Wrong()
    (done,), _ = complete(request(drafts, max_tokens=20))
    assert done.token_ids == complete(request(max_tokens=20))[0][0].token_ids
    assert drafts.n_max == 1  # of two tokens that are left one is drafted


def test_an_end_token_inside_a_draft():
    ending = [*b"abcde", END]

    def script(tokens):
        return ending[(len(tokens) - 1) % 6]

    class Right(Wrong):
        def propose(self, tokens, n_max):
            return [script(tokens + [0] * i) for i in range(n_max)]

        def record(self, n_drafted, n_accepted):
            assert (n_drafted, n_accepted) == (8, 5)

    engine = Scheduler(MockTransformer(script), slots=1)
    (done,) = engine.complete([request(Right(), prompt="", max_tokens=13)])
    assert (done.text, done.finish_reason) == ("abcde", "stop")
    assert done.token_ids == ending
    assert engine.transformer.steps == [[9]]


@pytest.mark.parametrize("fails_at", [2, 4, 6])
def test_a_draft_without_memory_is_given_up(fails_at):
    """A step that fails is run again without drafts: they may want pages that the text does not."""
    steps = []

    def on_forward(sequences):
        steps.append([n for _, n in sequences])
        if len(steps) >= fails_at and any(n > 1 for n in steps[-1]):
            raise PoolExhausted(1, "kv", 0, 0, 0, {})

    expected = [done.token_ids for done in complete(request(), request(seed=2))[0]]
    for requests in ([request(NgramDrafts())], [request(NgramDrafts()), request(seed=2)]):
        steps.clear()
        done = complete(*requests, on_forward=on_forward)[0]
        assert [d.token_ids for d in done] == expected[: len(done)]


@pytest.mark.parametrize("at", range(2, 12))
def test_an_interrupt_in_a_step_loses_nothing(at):
    """As ctrl-C raises it: in the forward pass, or while tokens are sampled."""
    calls = []

    def interrupt(*_):
        calls.append(None)
        if len(calls) == at:
            raise KeyboardInterrupt

    expected = complete(request())[0][0].token_ids
    for where in ("forward", "sampler"):
        calls.clear()
        one = request(NgramDrafts())
        sampler = one.sampler
        engine = Scheduler(MockTransformer(loop), slots=1)
        if where == "forward":
            engine.transformer.on_forward = interrupt
        else:

            def interrupted(*arguments, sampler=sampler):
                interrupt()
                return sampler(*arguments)

            interrupted.seed, interrupted.penalises, interrupted.counts = 1, False, False
            interrupted.query = sampler.query
            one.sampler = interrupted
        engine.submit(one)
        while not one.is_done:
            try:
                engine.step()
            except KeyboardInterrupt:
                assert one.state.length <= len(one.tokens)
        assert one.completion.token_ids == expected
