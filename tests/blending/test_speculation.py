"""How far to draft: the formula against simulation, and what is decided by what is measured."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cluster.blending.speculation import (
    Drafting,
    Measured,
    Speculation,
    best_length,
    expected_tokens,
    speedup,
)

CHEAP = Measured(agreement=0.8, share_decided=1.0, draft_s=0.1, decide_s=1.0, plain_s=1.0)
WHO = Speculation(draft=1, max_tokens=8, always=False)
SHARES = {0: 0.5, 1: 0.5}


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_expected_number_of_tokens_is_the_mean_of_many_blocks(
    agreement: float, share: float
) -> None:
    """Within 5 standard errors: over seeds, one of the 8 would fail with probability 5e-6."""
    numbers, num_drafted, num_blocks = random.Random(3), 6, 20_000
    lengths = []
    for _ in range(num_blocks):
        length = 1
        while length <= num_drafted and not (
            numbers.random() < share and numbers.random() >= agreement
        ):
            length += 1
        lengths.append(length)
    mean = sum(lengths) / num_blocks
    error = (sum((n - mean) ** 2 for n in lengths) / num_blocks) ** 0.5 / num_blocks**0.5
    found = expected_tokens(replace(CHEAP, agreement=agreement, share_decided=share), num_drafted)
    assert found == pytest.approx(mean, abs=5 * error + 1e-9)


def test_the_speedup_is_that_of_the_paper() -> None:
    """2211.17192, theorem 3.8: (1 - α^(γ+1)) / ((1 - α)(γc + 1))."""
    assert speedup(CHEAP, 5) == pytest.approx((1 - 0.8**6) / ((1 - 0.8) * (5 * 0.1 + 1)))


def test_drafts_are_longer_the_better_they_are_and_the_less_they_cost() -> None:
    by_agreement = [best_length(replace(CHEAP, agreement=a), 64) for a in (0.2, 0.5, 0.8, 0.95)]
    by_cost = [best_length(replace(CHEAP, draft_s=c), 64) for c in (0.4, 0.2, 0.1, 0.02)]
    for lengths in (by_agreement, by_cost):
        assert lengths == sorted(lengths)
        assert lengths[0] < lengths[-1]
    assert best_length(CHEAP, 3) == 3


def test_there_are_no_drafts_where_none_pays() -> None:
    assert best_length(replace(CHEAP, agreement=0.0), 8) == 0
    assert best_length(replace(CHEAP, draft_s=1.0), 8) == 0  # as dear as those it drafts for
    assert best_length(replace(CHEAP, decide_s=5.0), 8) == 0  # such as a pass that is all redone


def run(drafting: Drafting, num_turns: int, agreement: float, draft_s: float) -> list[int]:
    """The lengths of turns in a world with these figures; the big member's pass takes 1."""
    numbers, lengths = random.Random(0), []
    for _ in range(num_turns):
        length = drafting.next_length(WHO, SHARES)
        lengths.append(length)
        if not length:
            drafting.note_plain(0, 1, 1.0)
            drafting.note_plain(1, 1, draft_s)
            continue
        num_agreed = 0
        while num_agreed < length and numbers.random() < agreement:
            num_agreed += 1
        drafting.note_draft(length, length * draft_s)
        drafting.note_decision(min(length, num_agreed + 1), num_agreed, 1.0)
    return lengths


def test_plain_turns_come_first_then_drafts_and_these_stay_where_they_pay() -> None:
    lengths = run(Drafting(), 400, agreement=0.9, draft_s=0.05)
    assert lengths[:4] == [0, 0, 0, 0]
    assert sum(not length for length in lengths[10:]) <= 400 / 64 + 1  # looks how plain ones fare
    assert lengths[-1] == 8


def test_drafts_that_do_not_pay_end_but_for_a_look_now_and_then() -> None:
    lengths = run(Drafting(), 400, agreement=0.3, draft_s=0.9)
    assert sum(map(bool, lengths)) <= 16 + 4 * (800 / 256)  # two tokens a turn; looks are of four
    assert lengths[-1] == 0


def test_drafts_begin_again_when_they_have_become_worth_it() -> None:
    drafting = Drafting()
    assert run(drafting, 300, agreement=0.3, draft_s=0.9)[-1] == 0
    assert run(drafting, 3000, agreement=0.95, draft_s=0.05)[-2] > 0


def test_always_is_always() -> None:
    always = Speculation(draft=1, max_tokens=3, always=True)
    assert Drafting().next_length(always, SHARES) == 3
