"""A run of one member as the step that a replica of it is given. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.blending.base import Run
from cluster.blending.routing import Cascade
from cluster.members.base import Doubt, Draw, Form, Step
from cluster.router.plan import Plan
from cluster.router.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Speech:
    """A run under way."""

    run: Run
    begin: int  # the transcript's length where it began
    weights: tuple[tuple[str, float], ...] = ()  # by which its speaker was drawn, where they change


def draw_for(plan: Plan, run: Run, position: int) -> Draw:
    """What of the run is still to be drawn from a position on."""
    evidence = plan.evidence
    num_done = position - run.position
    return Draw(
        position=position,
        max_tokens=max(1, run.max_tokens - num_done),
        border=run.border,
        share=run.share,
        begins_span=num_done == 0,
        retake=run.retake and num_done == 0,
        whole_characters=plan.form is Form.TEXT and run.position + run.max_tokens < plan.max_tokens,
        score_news=evidence is not None and evidence.follows_reply,
        doubt=_doubt(plan, run, num_done),
    )


def step_for(plan: Plan, speech: Speech, transcript: Transcript, known: int) -> Step:
    """What the run still needs, as news to what the seat knows."""
    run = speech.run
    draw = draw_for(plan, run, transcript.position)
    if plan.form is Form.TOKEN_IDS:
        return Step(known, draw, token_ids=transcript.ids(known))
    # Text up to the run's beginning, then the run's own ids: only then does a fresh replica
    # compute with the very tokens that the lost one had drawn.
    base = min(known, speech.begin)
    return Step(base, draw, transcript.bytes(base, speech.begin), transcript.ids(run.position))


def _doubt(plan: Plan, run: Run, num_done: int) -> Doubt | None:
    """Where the run's member hands over, if it may."""
    method = plan.method
    if not isinstance(method, Cascade) or run.member != method.first:
        return None
    return Doubt(method.measure, method.threshold, method.span_tokens, num_done)
