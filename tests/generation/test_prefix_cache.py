"""Prompts that begin alike are read once: the same text, less work, no more memory than agreed."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from support.mock_model import END, VOCAB, ByteTokenizer, MockTransformer

import bitnet
from bitnet.errors import PoolExhausted
from bitnet.generation.prefix_cache import MIN_TOKENS, PrefixCache, common
from bitnet.generation.request import Request
from bitnet.generation.sampling import Sampling, make_sampler
from bitnet.generation.scheduler import Scheduler
from bitnet.generation.stopping import StopConditions

SYSTEM = "You are a patient clerk in a very small shop, and answer in one line. "


def request(prompt, max_tokens=5, seed=1):
    sampler = make_sampler(Sampling(temperature=1.0, seed=seed), VOCAB)
    ids = ByteTokenizer().encode(prompt)
    return Request(ids, sampler, StopConditions(max_tokens, eos_ids=frozenset((END,))))


def caching(transformer, **options):
    return Scheduler(transformer, prefix_cache=PrefixCache(), **options)


def complete(scheduler, *prompts, **keywords):
    return scheduler.complete([request(prompt, **keywords) for prompt in prompts])


def rows_read(transformer):
    return sum(map(sum, transformer.steps))


def test_common():
    a = np.array([1, 2, 3])
    assert [common(a, np.array(b)) for b in ([], [1], [1, 2, 3, 4], [1, 5, 3], [9])] == [
        0, 1, 3, 1, 0]  # fmt: skip


def test_a_prompt_that_begins_alike_reads_the_rest_only():
    transformer = MockTransformer(max_batch=256)
    scheduler = caching(transformer)
    first = complete(scheduler, SYSTEM + "Hello?")[0]
    assert first.cached_tokens == 0
    before = rows_read(transformer)
    second = complete(scheduler, SYSTEM + "Who is there?")[0]
    assert second.cached_tokens == len(SYSTEM) + 1  # and the begin token
    assert rows_read(transformer) - before == len("Who is there?") + 4
    plain = Scheduler(MockTransformer(max_batch=256))
    assert complete(plain, SYSTEM + "Who is there?")[0].token_ids == second.token_ids


def test_a_conversation_is_read_once():
    transformer = MockTransformer(max_batch=256)
    scheduler, text = caching(transformer), SYSTEM
    for turn in range(5):
        done = complete(scheduler, text, max_tokens=9)[0]
        assert (
            done.cached_tokens == 0 if turn == 0 else done.cached_tokens > done.prompt_tokens - 20
        )
        text += bytes(done.token_ids).decode("latin-1")
        text = text.encode("ascii", "replace").decode() + f" turn {turn}: "
    assert len(scheduler.prefix_cache) <= 5


def test_the_same_prompt_again_keeps_one_token_to_read():
    scheduler = caching(MockTransformer(max_batch=256))
    first, again = (complete(scheduler, SYSTEM)[0] for _ in range(2))
    assert again.token_ids == first.token_ids
    assert again.cached_tokens == again.prompt_tokens - 1
    assert len(scheduler.prefix_cache) == 1


def test_short_beginnings_are_not_worth_it():
    scheduler = caching(MockTransformer(max_batch=256))
    complete(scheduler, "abcdef" + "x" * 20)
    assert complete(scheduler, "abcdef" + "y" * 20)[0].cached_tokens == 0  # 7 with the begin token
    assert complete(scheduler, "abcdef" + "x" * 3 + "z")[0].cached_tokens == 10
    assert MIN_TOKENS == 8


def test_running_sequences_are_beginnings_too():
    transformer = MockTransformer(max_batch=256)
    scheduler = caching(transformer, slots=2)
    running = scheduler.submit(request(SYSTEM + "one", max_tokens=50))
    scheduler.step()
    done = complete(scheduler, SYSTEM + "two")[0]
    assert done.cached_tokens == len(SYSTEM) + 1 and not running.is_done
    scheduler.cancel(running)
    assert len(transformer.open_parts) == 1  # what was cancelled is not kept


def test_those_used_last_stay_within_the_memory_of_the_slots():
    transformer = MockTransformer(max_batch=256, context=128)  # 8 pages of 16
    scheduler = caching(transformer, slots=1)
    texts = [letter * 40 for letter in "abc"]  # 46 positions: 3 pages each
    for text in (texts[0], texts[1], texts[0], texts[2]):
        complete(scheduler, text)
    assert sum(part.nbytes for part in transformer.open_parts) <= 128
    assert complete(scheduler, texts[0])[0].cached_tokens == 40
    assert complete(scheduler, texts[1])[0].cached_tokens == 0


def test_closing_frees_all():
    transformer = MockTransformer(max_batch=256)
    scheduler = caching(transformer)
    complete(scheduler, SYSTEM, "x" * 30, "y" * 30)
    assert transformer.open_parts
    scheduler.close()
    assert not transformer.open_parts


def test_prefixes_against_a_list():
    """Random sequences kept, forked, dropped: the longest beginning is always found."""
    rng, model, kept, ours = random.Random(3), MockTransformer(), [], PrefixCache()
    for _ in range(300):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
        if rng.random() < 0.5:
            state = model.new_state()
            state.parts["kv"].tokens, state.length = list(tokens), len(tokens)
            ours.insert(tokens, state)
            kept.append(tokens)
        elif rng.random() < 0.1:
            ours.clear()
            kept.clear()
            assert not model.open_parts
        else:
            state = ours.fork(tokens)
            n = 0 if state is None else state.length
            arrays = [common(np.array(tokens), np.array(k)) for k in kept]
            best = min(max(arrays, default=0), len(tokens) - 1)
            assert n == (best if best >= MIN_TOKENS else 0)
            if state is not None:
                assert state.parts["kv"].tokens == tokens[:n]
                state.close()


# with a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8"])
def test_text_is_the_same_with_and_without(kv_dtype):
    prompts = [SYSTEM * n + end for n in (1, 3) for end in ("", "Good morrow.", "Farewell.")]
    options = {"max_tokens": 24, "temperature": 0.9, "seed": 5}
    with bitnet.load(kv_dtype=kv_dtype, prefix_cache=False) as model:
        expected = [model.generate(p, **options) for p in prompts]
    with bitnet.load(kv_dtype=kv_dtype, slots=2) as model:
        cached = 0
        for order in (prompts, prompts[::-1], prompts[::2] + prompts[1::2]):
            for prompt, done in zip(order, model.generate(order, **options), strict=True):
                assert done.token_ids == expected[prompts.index(prompt)].token_ids
                cached += done.cached_tokens
        assert cached > 500


def test_kept_caches_give_way_to_new_sequences():
    long = "It was a fine day and the wind was in the west. " * 20
    with bitnet.load(memory_limit="18MiB", threads=1, slots=1, context=512) as model:
        for i in range(6):
            done = model.generate(f"{i} {long}"[:900], max_tokens=4, temperature=0)
            assert done.prompt_tokens > 100
        session = model.session()
        for i in range(400):  # memory that kept caches hold is there for others
            session.feed([i])
        hog = []
        with pytest.raises(PoolExhausted):
            while True:
                hog.append(model.session())
                hog[-1].feed([1, 2, 3])


def test_no_file_is_written_within_a_forward_pass():
    """A full pool ends the pass; a prefix goes to a file between that and the next try."""
    model, inside, fail, saved = MockTransformer(), [], [], []
    forward = model.forward

    def watched(*arguments, **options):
        inside.append(True)
        try:
            if fail:
                fail.pop()
                raise PoolExhausted(1, "kv", 0, 0, 1, {"kv": 1})
            return forward(*arguments, **options)
        finally:
            inside.pop()

    model.forward = watched
    disk = SimpleNamespace(
        load=lambda *_, **__: None, save=lambda tokens, state: saved.append(bool(inside))
    )
    scheduler = Scheduler(model, prefix_cache=PrefixCache(disk))
    scheduler.complete([request("a prompt that is kept")])
    fail.append(True)
    scheduler.complete([request("another one, for which there is no room")])
    assert saved == [False] and not fail
