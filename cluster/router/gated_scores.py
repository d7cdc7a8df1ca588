"""What a gate would have decided along a given text, from one pass of the member it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.blending.routing import Cascade, Routed
from cluster.members.base import Member, Rank, StepEvent, StepToken
from cluster.router.plan import Plan
from cluster.router.seats import Seats
from cluster.router.together import MAX_TOLD_BYTES, told
from cluster.router.transcript import Transcript

_POSITIONS_OF_ALL = 16  # in one step's answer that tells of whole vocabularies


async def weights_along(
    plan: Plan, tokens: Sequence[StepToken], members: Mapping[str, Member], lease_timeout_s: float
) -> list[list[float]]:
    """The members' weights before each token, were it the beginning of a span."""
    gate = plan.method
    seats = Seats(plan, members, lease_timeout_s)
    transcript = Transcript(plan.members, plan.form, ())
    try:
        if isinstance(gate, Cascade):
            answers = await _along(
                gate.first, seats, transcript, tokens, _POSITIONS_OF_ALL, state=False
            )
            return [gate.weights_after(a.distribution.logprobs) for a in answers if a.distribution]
        assert isinstance(gate, Routed), "other methods have no gate"
        num_at_once = max(1, MAX_TOLD_BYTES // (4 * gate.network.num_features))
        answers = await _along(gate.reader, seats, transcript, tokens, num_at_once, state=True)
        return [gate.weights_after(answer.state) for answer in answers]
    finally:
        await seats.leave()


async def _along(
    reader: int,
    seats: Seats,
    transcript: Transcript,
    tokens: Sequence[StepToken],
    num_at_once: int,
    *,
    state: bool,
) -> list[StepEvent]:
    """What the member tells of the token at each position; everything, or the state behind it."""
    found: list[StepEvent] = []
    await seats.sit_down((reader,), first=(reader,))
    for begin in range(0, len(tokens), num_at_once):
        end = min(begin + num_at_once, len(tokens))
        transcript.commit(0, list(tokens[max(0, begin - 1) : end - 1]))
        rank = Rank(end - 1, num_top=int(state), with_state=state, num_positions=end - begin)
        events = await told(reader, rank, seats, transcript)
        found += [event for event in events if event.distribution is not None]
    return found
