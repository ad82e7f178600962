"""Rows and time are shared fairly among prompts, slots among clients; memory is waited for."""

from types import SimpleNamespace

import pytest
from support.mock_model import MockTransformer
from support.requests import PROMPTS, alone, plain, request

from bitnet.generation.fairness import ClientShares


@pytest.fixture
def clock(monkeypatch):
    """A clock that steps of a mock model move: 1 s, and a quarter more for each row of a prompt."""
    one = SimpleNamespace(now=0.0)

    def on_forward(sequences):
        one.now += 1 + 0.25 * sum(n for _, n in sequences if n > 1)

    one.on_forward = on_forward
    monkeypatch.setattr(
        "bitnet.generation.scheduler.time", SimpleNamespace(perf_counter=lambda: one.now)
    )
    return one


def fair(transformer, **options):
    return plain(transformer, fair=True, **options)


@pytest.mark.parametrize("max_batch", [16, 64, 256])
def test_running_sequences_keep_half_their_speed(clock, max_batch):
    scheduler = fair(MockTransformer(max_batch=max_batch, on_forward=clock.on_forward), slots=2)
    running = scheduler.submit(request("a", max_tokens=400))
    for _ in range(3):
        scheduler.step()
    long = scheduler.submit(request("y" * 400, max_tokens=1))
    start, n_before, gap = clock.now, len(running.tokens), 0
    while not long.is_done:
        before = clock.now
        scheduler.step()
        gap = max(gap, clock.now - before)
    n, seconds = len(running.tokens) - n_before, clock.now - start
    assert 0.5 * seconds <= n <= 0.68 * seconds  # alone it made one a second
    assert gap <= 1 + 0.25 * 32


def test_running_sequences_keep_half_their_speed_beside_many_short_prompts(clock):
    """Each of them is read in a step, and what it took is owed to the running ones after it."""
    scheduler = fair(MockTransformer(on_forward=clock.on_forward), slots=2)
    running = scheduler.submit(request("a", max_tokens=400))
    for _ in range(3):
        scheduler.step()
    start, n_before = clock.now, len(running.tokens)
    for i in range(20):
        short = scheduler.submit(request(f"{i:02}" + "y" * 20, max_tokens=1))
        while not short.is_done:
            scheduler.step()
        scheduler.step()  # until the next one comes
    n, seconds = len(running.tokens) - n_before, clock.now - start
    assert 0.5 * seconds <= n <= 0.68 * seconds


def test_without_others_a_prompt_takes_whole_steps():
    scheduler = fair(MockTransformer(max_batch=64), slots=2)
    scheduler.complete([request("y" * 200, max_tokens=1)])
    assert scheduler.transformer.steps == [[64], [64], [64], [9]]


def test_a_short_prompt_does_not_wait_for_a_long_one():
    scheduler = fair(MockTransformer(max_batch=64), slots=4)
    long = scheduler.submit(request("y" * 500, max_tokens=1))
    scheduler.step()
    short = scheduler.submit(request("z" * 30, max_tokens=1))
    scheduler.step()
    assert short.is_done and not long.is_done
    assert scheduler.transformer.steps[1] == [33, 31]


@pytest.mark.parametrize("max_batch", [5, 16, 64])
def test_text_is_the_same(clock, max_batch):
    scheduler = fair(MockTransformer(max_batch=max_batch, on_forward=clock.on_forward), slots=3)
    done = scheduler.complete([request(p, seed=i) for i, p in enumerate(PROMPTS)])
    assert [d.text for d in done] == [alone(prompt=p, seed=i).text for i, p in enumerate(PROMPTS)]


def test_requests_wait_until_the_pool_has_room_for_all_of_their_tokens():
    model = MockTransformer()
    model.pool = SimpleNamespace(
        stats=lambda: SimpleNamespace(
            by_purpose={"kv": (0,)}, largest_free=0, limit=2 * 512, reserved=0
        )
    )
    scheduler = plain(model, slots=8)
    requests = [scheduler.submit(request(max_tokens=500, seed=i)) for i in range(4)]
    while scheduler.step():
        assert len(model.open_parts) <= 2
    assert all(r.completion for r in requests)


# ------------------------------------------------------------------------------------------ clients
def of(client, prompt="x", **options):
    return request(prompt, options={"client": client}, **options)


def admission_order(scheduler, requests):
    """The clients of the requests, in the order in which these took their slots."""
    for one in requests:
        scheduler.submit(one)
    while scheduler.step():
        pass
    assert all(one.completion for one in requests)
    return [one.client for one in sorted(requests, key=lambda one: one.admitted)]


def test_one_clients_sixty_do_not_keep_anothers_waiting():
    scheduler = fair(MockTransformer(max_batch=64), slots=4)
    many = [of("a", max_tokens=5, seed=i) for i in range(60)]
    few = [of("b", max_tokens=5, seed=i) for i in range(3)]
    order = admission_order(scheduler, [*many, *few])
    assert order[:4] == list("abab")
    assert [i for i, client in enumerate(order) if client == "b"][-1] < 8  # of 63
    assert order[8:] == ["a"] * 55


def test_those_who_come_later_get_the_next_slots():
    scheduler = fair(MockTransformer(max_batch=64), slots=2)
    many = [scheduler.submit(of("a", max_tokens=4, seed=i)) for i in range(20)]
    scheduler.step()
    late = scheduler.submit(of("b", max_tokens=4))
    while not late.has_slot and scheduler.step():
        pass
    assert sum(one.is_done for one in many) <= 2 and sum(one.has_slot for one in many) <= 2


def test_clients_get_as_many_tokens_as_each_other():
    """One slot: who asks for four times as long texts has a quarter of the turns."""
    scheduler = fair(MockTransformer(max_batch=64, script=lambda tokens: 65), slots=1)
    long = [of("long", max_tokens=40, seed=i) for i in range(10)]
    short = [of("short", max_tokens=10, seed=i) for i in range(40)]
    order = admission_order(scheduler, [*long, *short])
    assert 3 <= order[:20].count("long") <= 5
    assert not scheduler.step() and scheduler.counts() == (0, 0)


def test_one_clients_requests_run_in_order_of_arrival():
    scheduler = fair(MockTransformer(max_batch=64), slots=2)
    requests = [of("a", max_tokens=3 + i % 5, seed=i) for i in range(12)]
    admission_order(scheduler, requests)
    assert sorted(requests, key=lambda one: one.admitted) == requests


def test_who_was_away_saves_nothing_up_and_owes_what_he_was_ahead():
    shares = ClientShares()
    a, b = SimpleNamespace(client="a"), SimpleNamespace(client="b")
    assert shares.next([a], []) is a
    shares.charge("a", 100)
    shares.forget_others({"a"})
    assert shares.next([a, b], []) is a  # b begins where a is: the first that came
    shares.charge("b", 30, 10)  # 50: ahead of a
    shares.forget_others({"a"})
    assert shares.next([b, a], []) is a  # b went, and comes back
    shares.charge("a", 60)
    shares.forget_others({"a"})  # behind a by now: forgotten
    assert shares.next([b, a], []) is b  # as one who is new
    assert shares.next([a, b], [b]) is a  # whoever has fewer slots
    shares.forget_others(set())
    shares.charge("b", 1)
    assert shares.next([a, b], []) is a


@pytest.mark.parametrize("slots", [1, 3])
def test_text_does_not_depend_on_whose_turn_it_is(slots):
    scheduler = fair(MockTransformer(), slots=slots)
    requests = [of(i % 3, p, seed=i) for i, p in enumerate(PROMPTS)]
    assert [d.text for d in scheduler.complete(requests)] == [
        alone(prompt=p, seed=i).text for i, p in enumerate(PROMPTS)
    ]
