"""The scheduler on a mock model: who runs when, who fails alone, and that nothing is left."""

import gc
import threading

import numpy as np
import pytest
from support.mock_model import BOS, MockTransformer, says
from support.requests import PROMPTS, alone, plain, request

from bitnet import Cancelled, ContextFull, PoolExhausted


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("max_batch", [5, 7, 64])
@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.7, "repetition_penalty": 1.5}])
def test_batch_and_chunk_sizes_do_not_matter(slots, max_batch, sampling):
    scheduler = plain(MockTransformer(max_batch=max_batch), slots=slots)
    keywords = [
        {"prompt": p, "max_tokens": 10 + 3 * i, "seed": i, **sampling}
        for i, p in enumerate(PROMPTS)
    ]
    done = scheduler.complete([request(**k) for k in keywords])
    for i in range(len(PROMPTS)):
        expected = alone(**keywords[i])
        assert done[i].token_ids == expected.token_ids
        assert done[i].text == expected.text
    assert not scheduler.transformer.open_parts
    at_once = max(map(len, scheduler.transformer.steps))
    assert at_once == slots if max_batch == 64 else at_once <= slots


def test_a_long_prompt_is_prefilled_beside_running_sequences():
    scheduler = plain(MockTransformer(max_batch=8), slots=2)
    first, second = request("a", max_tokens=12), request("y" * 39, max_tokens=2)
    scheduler.submit(first)
    scheduler.step()
    scheduler.submit(second)
    while not second.is_done:
        scheduler.step()
    assert scheduler.transformer.steps[:7] == [[2], [1, 7], [1, 7], [1, 7], [1, 7], [1, 7], [1, 5]]
    scheduler.complete([])
    while scheduler.step():
        pass
    assert first.completion.completion_tokens == 12


def test_requests_wait_in_order_of_arrival():
    scheduler = plain(MockTransformer(), slots=2)
    order = []
    requests = [request(max_tokens=3, seed=i) for i in range(5)]
    for one in requests:
        scheduler.submit(one)
    while scheduler.step():
        order += [i for i, one in enumerate(requests) if one.is_done and i not in order]
        assert len(scheduler.transformer.open_parts) <= 2
    assert order == [0, 1, 2, 3, 4]


def test_more_slots_than_rows():
    scheduler = plain(MockTransformer(max_batch=2), slots=8)
    done = scheduler.complete([request(p) for p in PROMPTS])
    assert [d.token_ids for d in done] == [alone(prompt=p).token_ids for p in PROMPTS]


def test_logits_are_asked_for_only_when_a_prompt_is_complete():
    asked = []

    class Transformer(MockTransformer):
        def forward(self, token_ids, sequences, *, logits="last", queries=None):
            asked.append(logits)
            return super().forward(token_ids, sequences, logits=logits)

    plain(Transformer(max_batch=8)).complete([request("y" * 19, max_tokens=2)])
    assert asked == [[0], [0], [1], [1]]


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9])
def test_cancelling_in_prefill_and_decode_frees_the_cache(steps):
    scheduler = plain(MockTransformer(max_batch=8), slots=2)
    other, one = request("z"), request("y" * 29)  # 4 steps of prefill
    for r in (other, one):
        scheduler.submit(r)
    for _ in range(steps):
        scheduler.step()
    assert not one.is_done
    scheduler.cancel(one)
    assert one.is_done and isinstance(one.error, Cancelled)
    assert len(scheduler.transformer.open_parts) == min(steps, 1)
    while scheduler.step():
        pass
    assert other.completion.token_ids == alone(prompt="z").token_ids
    scheduler.cancel(other)  # done already: nothing happens
    assert other.completion and other.error is None
    assert not scheduler.transformer.open_parts


def test_leaving_a_stream_cancels_it():
    scheduler = plain(MockTransformer())
    for leave in (lambda p: p.close(), lambda p: None):
        deltas = scheduler.stream(request())
        assert next(deltas)
        assert scheduler.transformer.open_parts
        leave(deltas)
        del deltas
        gc.collect()
        assert not scheduler.transformer.open_parts
        assert not scheduler.step()


def test_a_stream_that_is_never_started_takes_nothing():
    scheduler = plain(MockTransformer())
    scheduler.stream(request())
    assert not scheduler.step()


def test_cancelling_from_another_thread_during_a_step():
    seen = []

    def cancel(sequences):
        if len(model.steps) == 3 and not seen:
            thread = threading.Thread(target=lambda: seen.append(scheduler.cancel(one)))
            thread.start()
            thread.join()  # does not wait for the step
            assert not one.is_done

    model = MockTransformer(on_forward=cancel)
    scheduler = plain(model)
    one = request()
    with pytest.raises(Cancelled):
        scheduler.complete([one])
    assert seen and not model.open_parts and len(model.steps) == 4


def test_cancelling_from_within_a_step_of_the_same_thread():
    def cancel(sequences):  # as the garbage collector may do
        if len(model.steps) == 3:
            scheduler.cancel(one)
            assert not one.is_done

    model = MockTransformer(on_forward=cancel)
    scheduler, one = plain(model), request()
    with pytest.raises(Cancelled):
        scheduler.complete([one])
    assert not model.open_parts


def guilty(sequences):
    for tokens, _ in sequences:
        if tokens[1:2] == [ord("!")] and len(tokens) > 4:
            raise PoolExhausted(1, "kv", 0, 0, 0, {})


@pytest.mark.parametrize("slots", [1, 3])
def test_one_failing_request_does_not_take_the_others_down(slots):
    scheduler = plain(MockTransformer(on_forward=guilty), slots=slots)
    requests = [request("one"), request("!bad"), request("two")]
    for r in requests:
        scheduler.submit(r)
    while scheduler.step():
        pass
    assert isinstance(requests[1].error, PoolExhausted)
    for r, prompt in ((requests[0], "one"), (requests[2], "two")):
        assert r.completion.token_ids == alone(prompt=prompt).token_ids
    assert not scheduler.transformer.open_parts
    with pytest.raises(PoolExhausted):
        scheduler.complete([request("one"), request("!bad")])
    assert not scheduler.transformer.open_parts and not scheduler.step()


def test_a_sampler_that_fails_ends_its_request_only():
    class Transformer(MockTransformer):
        def logits_after(self, tokens):
            logits = super().logits_after(tokens)
            if len(tokens) == 9 and tokens[1] == ord("n"):
                logits[7] = np.nan
            return logits

    scheduler = plain(Transformer(), slots=2)
    bad, good = request("nan"), request("good")
    for r in (bad, good):
        scheduler.submit(r)
    while scheduler.step():
        pass
    assert "not finite" in str(bad.error)
    assert good.completion.token_ids == alone(prompt="good").token_ids


def test_a_cache_that_cannot_be_made_ends_its_request_only():
    model = MockTransformer()
    scheduler = plain(model, slots=2)
    good, bad = scheduler.submit(request("good")), scheduler.submit(request("bad"))
    make, made = model.new_state, []

    def new_state(**keywords):
        made.append(1)
        if len(made) == 2:
            raise MemoryError("no table")
        return make(**keywords)

    model.new_state = new_state
    while scheduler.step():
        pass
    assert good.completion and isinstance(bad.error, MemoryError)


def test_an_error_that_is_no_sequences_goes_to_who_runs_the_step():
    """What the handler of a timer raises, say: once, whichever sequences are read."""

    def timer(sequences):
        timer.n += 1
        if timer.n == 3:
            raise TimeoutError("of a signal handler")

    timer.n = 0
    scheduler = plain(MockTransformer(on_forward=timer), slots=2)
    other = scheduler.submit(request("of another caller"))
    with pytest.raises(TimeoutError):
        scheduler.complete([request("timed")])
    while scheduler.step():
        pass
    assert other.completion.token_ids == alone(prompt="of another caller").token_ids
    assert not scheduler.transformer.open_parts


@pytest.mark.parametrize("at", range(1, 12))
def test_an_interrupt_leaves_the_engine_consistent(at):
    """Ctrl-C in a step ends the call it hits; sequences of other callers go on as before."""

    def interrupt(sequences):
        interrupt.n += 1
        if interrupt.n == at:
            raise KeyboardInterrupt

    interrupt.n = 0
    scheduler = plain(MockTransformer(max_batch=8, on_forward=interrupt), slots=2)
    other = scheduler.submit(request("other caller's long prompt"))
    with pytest.raises(KeyboardInterrupt):
        scheduler.complete([request("interrupted")])
    assert len(scheduler.transformer.open_parts) <= 1
    while scheduler.step():
        pass
    assert other.completion.token_ids == alone(prompt="other caller's long prompt").token_ids
    assert not scheduler.transformer.open_parts


@pytest.mark.parametrize("where", ["sampler", "push"])
def test_an_interrupt_between_logits_and_token(where, monkeypatch):
    scheduler = plain(MockTransformer(), slots=2)
    one, other = scheduler.submit(request("one")), scheduler.submit(request("other"))
    for _ in range(4):
        scheduler.step()
    target, name = (one, "sampler") if where == "sampler" else (one.detokenizer, "push")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    interrupt.query = one.sampler.query
    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            scheduler.step()
    while scheduler.step():
        pass
    for r, prompt in ((one, "one"), (other, "other")):
        assert r.completion.token_ids == alone(prompt=prompt).token_ids
        assert r.completion.text == alone(prompt=prompt).text


def test_threads_share_the_engine():
    scheduler = plain(MockTransformer(max_batch=8), slots=3)
    found = {}

    def run(i):
        found[i] = "".join(scheduler.stream(request(PROMPTS[i % 5], seed=i)))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: alone(prompt=PROMPTS[i % 5], seed=i).text for i in range(12)}
    assert not scheduler.transformer.open_parts
    assert max(map(len, scheduler.transformer.steps)) <= 3


def test_a_closed_engine():
    scheduler = plain(MockTransformer(), slots=2)
    model = scheduler.transformer
    one, two = scheduler.submit(request()), request()
    deltas = scheduler.stream(two)
    next(deltas)
    scheduler.close()
    assert not model.open_parts
    assert isinstance(one.error, Cancelled)
    with pytest.raises(Cancelled):
        list(deltas)
    with pytest.raises(ValueError, match="closed"):
        scheduler.submit(request())
    scheduler.close()


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ([], "none"),
        ([300], "0 to 299"),
        ([-1], "0 to 299"),
        ([1, 10**12], "0 to 299"),
    ],
)
def test_prompts_that_are_refused(prompt, error):
    scheduler = plain(MockTransformer())
    with pytest.raises(ValueError, match=error):
        scheduler.submit(request(prompt))
    with pytest.raises(ContextFull):
        scheduler.submit(request([1] * 513))
    assert not scheduler.step()


def test_a_script_of_many_replies():
    script = says("done")
    script.n_prompt = 4
    scheduler = plain(MockTransformer(script), slots=4)
    done = scheduler.complete([request([BOS, 1, 2, i]) for i in range(9)])
    assert [d.text for d in done] == ["done"] * 9


def test_an_error_of_admission_is_what_is_raised():
    class Transformer(MockTransformer):
        def new_state(self, *arguments, **keywords):
            raise PoolExhausted(1, "kv", 0, 0, 0, {})

    scheduler = plain(Transformer())
    with pytest.raises(PoolExhausted):
        scheduler.complete([request("abc")])
    with pytest.raises(PoolExhausted):
        list(scheduler.stream(request("abc")))
