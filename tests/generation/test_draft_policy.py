"""How much is drafted: by costs and agreement as they were measured."""

import itertools

import pytest

from bitnet.generation.draft_policy import (
    MAX_AGE,
    MAX_LOSS,
    MIN_GAIN,
    STEP_SHARE,
    Agreement,
    Candidate,
    Losses,
    Savings,
    StepCosts,
    best_lengths,
    drafting,
)


def costs(table):
    found = StepCosts()
    for n_rows, seconds in table.items():
        found.record(n_rows, seconds)
    return found


FLAT = costs({1: 1.0, 9: 1.4})  # a memory-bound model: rows are nearly free
STEEP = costs({1: 1.0, 2: 1.6, 9: 6.1})
SMALL = costs({1: 0.2, 2: 0.2})


def test_a_cost_is_the_lower_quartile_of_the_latest():
    found = StepCosts()
    for seconds in (1, 9, 9, 2, 3, 4, 5, 50):
        found.record(1, seconds)
    assert found.of(1) == 3 and found.n_measured(1) == 5
    assert found.of(7) == 3  # of one number of rows nothing is known about others


def test_costs_between_and_beyond():
    found = costs({1: 1.0, 3: 2.0, 8: 7.0})
    assert [found.of(n) for n in (1, 2, 3, 4, 15)] == [1, 1.5, 2, 3, 13]
    assert costs({2: 3.0, 3: 2.0}).of(9) == 2  # what was never measured is not cheaper
    assert StepCosts().of(5) == 0 and StepCosts().most_rows == 0


def test_what_nobody_measured_again_is_forgotten():
    found = costs({1: 1.0, 5: 99.0})
    for _ in range(MAX_AGE + 1):
        found.record(1, 1.0)
    assert found.of(5) == 1 and found.most_rows == 1


def test_agreement_goes_from_that_of_all_to_its_own():
    all_of_them = Agreement()
    first, second = Agreement(all_of_them), Agreement(all_of_them)
    before = second.probability
    for _ in range(30):
        first.record(4, 4)
    assert 0.97 < first.probability <= 0.99 and before < second.probability < first.probability
    for _ in range(60):
        second.record(4, 0)
    assert second.probability < 0.1 < all_of_them.probability < first.probability


def test_tokens_behind_a_wrong_one_were_not_tried():
    a, b = Agreement(), Agreement()
    a.record(8, 1)
    b.record(2, 1)
    assert a.probability == b.probability


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("target", [FLAT, STEEP], ids=["flat", "steep"])
def test_one_sequence_drafts_what_gives_the_most_tokens_a_second(p, target):
    def rate(n):
        return sum(p**i for i in range(n + 1)) / (target.of(1 + n) + 0.2 * n)

    best = max(range(9), key=rate)
    expected = best if rate(best) > MIN_GAIN * rate(0) else 0
    assert best_lengths(target, SMALL, [Candidate(p, 8)], 1, 8) == [expected]
    assert expected > 1 or target is STEEP or p < 0.7


def test_several_sequences_share_the_rows_by_what_they_gain():
    candidates = [Candidate(0.9, 8), Candidate(0.5, 8), Candidate(0.02, 8)]
    small = costs({1: 0.05, 2: 0.05})
    found = best_lengths(FLAT, small, candidates, 4, 8)

    def rate(lengths):
        n = sum(lengths)
        gain = sum(
            c.probability**i
            for c, k in zip(candidates, lengths, strict=True)
            for i in range(1, k + 1)
        )
        return (4 + gain) / (FLAT.of(4 + n) + drafting(small, candidates, lengths))

    every = [x for x in itertools.product(range(9), repeat=3) if sum(x) <= 5]  # rows up to 9
    best = max(rate(x) for x in every)
    assert found[0] > found[1] >= found[2] == 0
    assert rate(found) > 0.98 * best


def test_lengths_stay_within_room_and_rows():
    sure = [Candidate(0.99, 2), Candidate(0.99, 8)]
    assert best_lengths(FLAT, SMALL, sure, 2, 5) == [2, 3]
    assert best_lengths(FLAT, SMALL, [Candidate(0.99, 8)], 1, 0) == [0]


def test_rows_that_were_never_measured_are_tried_one_after_the_other():
    target, lengths = StepCosts(), []
    for _ in range(9):
        n = best_lengths(costs({1: 1.0}) if not lengths else target, SMALL,
                         [Candidate(0.99, 8)], 1, 8)[0]  # fmt: skip
        if not lengths:
            target.record(1, 1.0)
        target.record(1 + n, 1.0)
        lengths.append(n)
    assert lengths == [1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_losses_are_never_far_below_plain_decoding():
    losses, lost, n_steps = Losses(), 0.0, 1000
    for _ in range(n_steps):
        losses.record_step()
        while losses.left(1.0) >= 0.3:
            losses.record(-0.3, 1.0)
            lost += 0.3
    assert MAX_LOSS - 0.3 <= lost <= MAX_LOSS + 0.01 * n_steps
    for _ in range(500):
        losses.record(0.5, 1.0)
    assert losses.left(1.0) == 2 * MAX_LOSS  # what was gained is not there to be lost


def test_reading_is_paid_from_savings():
    savings = Savings()
    savings.record_prompt(10.0)
    assert savings.pay(0.2) == 0 and savings.seconds == pytest.approx(0.1)
    assert savings.pay(0.5) == pytest.approx(0.4) and savings.seconds == 0
    savings.record_step(1.0)
    assert savings.seconds == STEP_SHARE
    savings.record_draft(0.4)
    savings.record_draft(-9.0)
    assert savings.seconds == 0
