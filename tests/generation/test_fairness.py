"""Long prompts beside running sequences: time and rows are shared fairly; memory is waited for."""

from types import SimpleNamespace

import pytest
from support.mock_model import MockTransformer
from support.requests import PROMPTS, alone, plain, request


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
