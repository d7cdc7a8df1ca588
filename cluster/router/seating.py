"""Who sits at a reply's beginning: as few members as may speak, the first speaker's prompt last."""

from __future__ import annotations

from cluster.blending.adaptive import AdaptiveMixture
from cluster.blending.base import Together
from cluster.blending.routing import Routed
from cluster.members.base import Rank, RunEnd
from cluster.router.plan import Plan
from cluster.router.seats import Seats
from cluster.router.together import told
from cluster.router.transcript import Transcript


async def sit_down(plan: Plan, seats: Seats, transcript: Transcript) -> None:
    """Lease and open all that may speak; for weights by the prompt, have it read as well."""
    method, evidence = plan.method, plan.evidence
    if evidence is not None and evidence.reads_prompt:
        evidence.read_prompt(await seats.read_prompt(method.speakers))
        if isinstance(method, AdaptiveMixture) and not evidence.follows_reply:
            await seats.leave(keep=method.now().speakers)  # no other is needed again
        return
    if isinstance(method, Routed) and method.mixture.span == "response":
        await _sit_down_one(method, plan, seats, transcript)
        return
    if isinstance(method, Together) or plan.received:
        first = method.speakers  # the prompt and what follows are one pass for all
    elif isinstance(method, Routed):
        first = (method.reader,)
    else:
        first = (method.next_run(0, plan.max_tokens, dropped=False).member,)
    await seats.sit_down(plan.seated, first)


async def _sit_down_one(gate: Routed, plan: Plan, seats: Seats, transcript: Transcript) -> None:
    """Who speaks a whole reply is not known before its gate has read the prompt."""
    if plan.received:
        speakers: tuple[int, ...] = (plan.received[0].member,)
    else:
        await seats.sit_down((gate.reader,), (gate.reader,))
        if not await ask_gate(gate, seats, transcript):
            return
        speakers = gate.drawn()
        if speakers == (gate.reader,):
            return
        await seats.leave()
    await seats.sit_down(speakers, speakers)


async def ask_gate(gate: Routed, seats: Seats, transcript: Transcript) -> bool:
    """Let it read what its reader makes of all that was said; False when that is too long."""
    position = transcript.position
    rank = Rank(position, num_top=1, with_state=True)
    *_, answer = await told(gate.reader, rank, seats, transcript)
    if answer.end is RunEnd.CONTEXT_FULL:
        return False
    gate.decide(position, answer.state)
    return True
