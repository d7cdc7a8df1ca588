"""What stands of a draft, by what everybody said to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.members.base import RunEnd, StepToken
from cluster.router.speculating import Block, Decided, settled

DRAFTER, LOW, HIGH = 0, 1, 2
SPEAKERS = [DRAFTER, LOW, HIGH, DRAFTER, LOW, HIGH]  # of five drafted tokens and the next one
DRAFT = [10, 11, 12, 13, 14]


def token(id: int) -> StepToken:
    return StepToken(id, b"", -1.0)


def settle(
    said: Mapping[int, Sequence[int]],
    *,
    speakers: Sequence[int] = SPEAKERS,
    ends: Mapping[int, RunEnd] | None = None,
    end: RunEnd = RunEnd.COMPLETE,
) -> Block:
    """`said`: each member's draws at its own positions."""
    decided = {
        member: Decided(
            [at for at, who in enumerate(speakers) if who == member],
            [token(id) for id in ids],
            (ends or {}).get(member, RunEnd.COMPLETE),
        )
        for member, ids in said.items()
    }
    draft = [token(id) for id in DRAFT[: len(speakers) - 1]]
    return settled(draft, speakers, DRAFTER, decided, end)


def spoken(block: Block) -> list[tuple[int, int]]:
    return [(drawn.member, drawn.token.id) for drawn in block.drawn]


def test_a_draft_that_all_agree_with_stands_with_one_token_more() -> None:
    block = settle({LOW: [11, 14], HIGH: [12, 99]})
    assert spoken(block) == list(zip(SPEAKERS, [*DRAFT, 99], strict=True))
    assert (block.num_agreed, block.num_decided, block.is_end) == (5, 3, False)


def test_the_earliest_refutation_counts_whoever_draws_on_behind_it() -> None:
    block = settle({LOW: [11, 14], HIGH: [77]})
    assert spoken(block) == [(DRAFTER, 10), (LOW, 11), (HIGH, 77)]
    assert (block.num_agreed, block.num_decided) == (2, 2)
    block = settle({LOW: [66], HIGH: [77]})
    assert spoken(block) == [(DRAFTER, 10), (LOW, 66)]
    assert (block.num_agreed, block.num_decided) == (1, 1)


def test_a_turn_ends_only_where_all_before_it_stands() -> None:
    ends = {LOW: RunEnd.END_OF_TURN}
    block = settle({LOW: [11], HIGH: [12, 99]}, ends=ends)
    assert spoken(block) == [(DRAFTER, 10), (LOW, 11), (HIGH, 12), (DRAFTER, 13)]
    assert (block.num_agreed, block.num_decided, block.is_end) == (4, 3, True)
    block = settle({LOW: [11], HIGH: [77]}, ends=ends)
    assert (len(block.drawn), block.is_end) == (3, False)


def test_the_drafter_ends_the_turn_at_a_position_of_its_own_if_its_draft_stands() -> None:
    speakers = [LOW, HIGH, DRAFTER]  # it drafted two tokens, then its turn ended
    block = settle({LOW: [10], HIGH: [11]}, speakers=speakers, end=RunEnd.END_OF_TURN)
    assert (spoken(block), block.is_end) == ([(LOW, 10), (HIGH, 11)], True)
    block = settle({LOW: [10], HIGH: [55]}, speakers=speakers, end=RunEnd.END_OF_TURN)
    assert (spoken(block), block.is_end) == ([(LOW, 10), (HIGH, 55)], False)
    block = settle({LOW: [10], HIGH: [11]}, speakers=speakers, end=RunEnd.CONTEXT_FULL)
    assert (len(block.drawn), block.is_end) == (2, False)  # a plain turn says what comes next


def test_who_has_no_room_ends_the_block_and_not_the_turn() -> None:
    block = settle({LOW: [], HIGH: [12]}, ends={LOW: RunEnd.CONTEXT_FULL})
    assert (spoken(block), block.is_end) == ([(DRAFTER, 10)], False)
