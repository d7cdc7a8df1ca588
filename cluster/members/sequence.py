"""One sequence on a replica: the step under way, and what the router is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from cluster.engine import types as engine
from cluster.engine.types import (
    Allowed,
    Output,
    Prefill,
    Sample,
    Score,
    TokenOutput,
    Work,
    WorkEnd,
)
from cluster.errors import CuveeError, InternalError, InvalidRequest
from cluster.members.base import (
    Draw,
    Emit,
    Event,
    Failed,
    MemberInfo,
    Opened,
    Prompt,
    Rank,
    RunEnd,
    SequenceStart,
    Step,
    StepEvent,
    StepToken,
    TopCandidate,
)
from cluster.members.judge import RunJudge
from cluster.members.reply import Reply, digest_of
from cluster.randomness import Purpose
from cluster.text.borders import Border
from cluster.text.grammar import Guide
from cluster.text.member import MemberText

_log = logging.getLogger(__name__)


class EngineFront(Protocol):
    """What a replica needs of the engine's thread."""

    def open(self) -> int:
        """A new sequence."""

    def submit(self, work: Work) -> None:
        """Begin a work."""

    def cancel(self, sequence: int) -> None:
        """End the sequence's work soon."""

    def close(self, sequence: int) -> None:
        """Forget the sequence."""

    def stop(self) -> None:
        """End the thread."""

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""


class ReplicaSequence:
    """One sequence: the reply as this member tokenizes it, and the step under way."""

    def __init__(
        self,
        member: MemberInfo,
        text: MemberText,
        engine: EngineFront,
        start: SequenceStart,
        emit: Emit,
        on_close: Callable[[int], object],
    ) -> None:
        self.id = engine.open()
        self.is_open = True  # it was not closed, from either side
        self._member = member
        self._text = text
        self._engine = engine
        self._start = start
        self._emit = emit
        self._on_close = on_close
        self._prompt_ids: list[int] = []
        self._is_ready = False  # the prompt is rendered
        self._submitted = False  # the engine has the prompt
        self._reply = Reply(start.form, text)
        self._guide: Guide | None = None
        self._judge: RunJudge | None = None
        self._prefilling = False
        self._step: Step | None = None  # held until the prompt is rendered and prefilled
        self._opening: asyncio.Task[None] | None = None
        self._is_owed = True  # the router waits for the opening, or for a step's end

    # -- the router's calls ---------------------------------------------------------------------

    def begin(self) -> None:
        """Render the prompt off the loop: a long one takes milliseconds, a grammar too."""
        self._opening = asyncio.create_task(self._open())

    def step(self, step: Step) -> None:
        """Begin a step, or hold it until the prompt is ready."""
        self._is_owed = True
        if not self._is_ready or self._prefilling:
            self._step = step
        else:
            self._run(step)

    def cancel(self) -> None:
        """End the running step soon."""
        if self._step is not None:
            self._step = None
            self._tell(StepEvent([], RunEnd.CANCELLED))
        else:
            self._engine.cancel(self.id)

    def close(self) -> None:
        """Forget the sequence and free its cache."""
        if self._opening is not None:
            self._opening.cancel()
        if self.is_open:
            self.is_open = False
            self._engine.close(self.id)
            self._on_close(self.id)

    def lose(self, error: CuveeError) -> None:
        """Close the sequence from this side; the router hears of it if it waits for something."""
        self.close()
        if self._is_owed:
            self._tell(Failed(error))

    # -- opening --------------------------------------------------------------------------------

    async def _open(self) -> None:
        with self._failing("PROMPT_FAILED"):
            ids = await asyncio.to_thread(self._render, self._start.prompt)
            if self._start.format is not None:
                self._guide = await asyncio.to_thread(self._text.guide, self._start.format)
            self._prompt_ids, self._is_ready = ids, True
            is_scored = self._start.score_prompt
            self._tell(Opened(len(ids), digest_of(ids) if is_scored else 0))
            if self._step is not None:
                self._take_held_step()
            elif self._start.prefill:
                # Ranked, the prompt costs the first draw after it no pass of its own.
                scored = engine.Rank(None, num_top=1, num_scored=len(ids) - 1)
                self._engine.submit(Work(self.id, 0, ids, scored if is_scored else Prefill()))
                self._prefilling = self._submitted = True

    def _render(self, prompt: Prompt) -> list[int]:
        ids = self._text.render(prompt.text, prompt.messages)
        room = self._start.max_prompt_tokens
        if len(ids) > room:
            raise InvalidRequest(
                "PROMPT_TOO_LONG",
                f"the prompt has {len(ids)} tokens for member {self._member.member!r}; "
                f"at most {room} fit",
                field="prompt" if prompt.messages is None else "chat",
            )
        return ids

    def _take_held_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            self._run(step)

    # -- steps ----------------------------------------------------------------------------------

    def _run(self, step: Step) -> None:
        with self._failing("STEP_FAILED"):
            self._engine.submit(self._work(step))

    @contextmanager
    def _failing(self, reason: str) -> Iterator[None]:
        """What goes wrong in here fails this sequence, and neither the others nor their stream."""
        try:
            yield
        except CuveeError as error:
            self._tell(Failed(error))
        except Exception as error:
            _log.exception("a sequence failed")
            self._tell(Failed(InternalError(reason, f"{type(error).__name__}: {error}")))

    def _work(self, step: Step) -> Work:
        keep, ids = self._reply.apply(step), self._reply.ids
        want: Sample | Score | engine.Rank
        if isinstance(step.want, Draw):
            want = self._sample(step.want)
            want.num_scored = len(step.token_ids) if step.want.score_news else 0
        elif isinstance(step.want, Rank):
            want = self._rank(step.want)
        else:
            targets = self._text.canonical.encode(step.want.text)
            self._check_room(targets)
            self._reply.add(targets)
            want = Score(len(targets), self._start.sampling)
            want.num_scored = len(targets) if step.want.score_news else 0
        if self._submitted:
            return Work(self.id, len(self._prompt_ids) + keep, ids[keep:], want)
        self._submitted = True
        if self._start.score_prompt:
            want.num_scored = len(self._prompt_ids) - 1 + len(ids)
        return Work(self.id, 0, self._prompt_ids + ids, want)

    def _sample(self, draw: Draw) -> Sample:
        text, doubt = self._text, draw.doubt
        judge = RunJudge(
            draw,
            seed=self._start.seed,
            token_bytes=text.token_bytes,
            end_ids=text.end_ids,
            before=self._reply.tail() if draw.border is not Border.NONE else b"",
        )
        self._judge = judge
        return Sample(
            params=self._start.sampling,
            seed=self._start.seed,
            first_position=draw.position,
            judge=judge,
            first_purpose=Purpose.RETAKE if draw.retake else Purpose.TOKEN,
            banned=text.end_ids,
            banned_before=self._start.end_allowed_from,
            allowed=self._allowed(),
            num_top=self._start.num_top,
            doubt=None
            if doubt is None
            else engine.Doubt(doubt.measure, doubt.threshold, judge.hands_over),
        )

    def _rank(self, rank: Rank) -> engine.Rank:
        first = rank.position - rank.num_positions + 1
        is_early = rank.position < self._start.end_allowed_from
        if rank.num_positions > 1 and first < self._start.end_allowed_from:
            raise InternalError("RANK_BANNED", "of several positions, all may end the turn")
        return engine.Rank(
            params=self._start.sampling if rank.is_warped else None,
            num_top=rank.num_top,
            ids=rank.ids,
            banned=self._text.end_ids if is_early else (),
            with_state=rank.with_state,
            allowed=self._allowed(),
            num_positions=rank.num_positions,
        )

    def _allowed(self) -> Allowed | None:
        """What may follow the prompt and the reply so far, where the reply has a format."""
        guide, num_prompt = self._guide, len(self._prompt_ids)
        return None if guide is None else lambda ids: guide.allowed(ids[num_prompt:])

    def _check_room(self, targets: list[int]) -> None:
        room = self._member.max_context - len(self._prompt_ids) - len(self._reply.ids)
        if not targets or len(targets) > room:
            raise InvalidRequest(
                "CONTINUATION_TOO_LONG" if targets else "EMPTY_CONTINUATION",
                f"the continuation has {len(targets)} tokens for member "
                f"{self._member.member!r}; between 1 and {room} fit after the prompt",
                field="continuation",
            )

    # -- the engine's answers -------------------------------------------------------------------

    def on_output(self, output: Output) -> None:
        """Pass on what one forward pass gave; called on the event loop."""
        with self._failing("OUTPUT_FAILED"):
            self._pass_on(output)

    def _pass_on(self, output: Output) -> None:
        if output.end is WorkEnd.FAILED:
            self._tell(Failed(output.cause or InternalError("ENGINE_FAILED", output.error)))
            return
        event = StepEvent(
            [self._token(token) for token in output.tokens],
            None,
            output.num_passes,
            output.num_processed,
            output.num_cached,
            output.distribution,
            output.scored,
            output.state,
        )
        if self._prefilling:
            self._prefilling = output.end is None
            event.distribution = None  # nobody asked for it
            self._tell(event)
            if not self._prefilling:
                self._take_held_step()
            return
        if self._judge is not None:
            self._reply.add(token.token for token in output.tokens)
        if output.end is not None:
            event.end = self._run_end(output.end)
            self._judge = None
        self._tell(event)

    def _run_end(self, end: WorkEnd) -> RunEnd:
        if end is WorkEnd.CANCELLED:
            return RunEnd.CANCELLED
        if end is WorkEnd.CONTEXT_FULL:
            return RunEnd.CONTEXT_FULL
        if self._judge is None:
            return RunEnd.COMPLETE
        assert self._judge.end is not None, "the engine stopped a run that its judge did not"
        return self._judge.end

    def _tell(self, event: Event) -> None:
        if not isinstance(event, StepEvent) or event.end is not None:
            self._is_owed = self._step is not None
        self._emit(event)

    def _token(self, token: TokenOutput) -> StepToken:
        spelled = self._text.token_bytes
        return StepToken(
            token.token,
            spelled[token.token],
            token.logprob,
            tuple(TopCandidate(id, spelled[id], logprob) for id, logprob in token.top),
        )
