"""A sequence that draws tokens: the step under way, and what the router is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cluster.engine import types as engine
from cluster.engine.types import Allowed, Output, Sample, Score, TokenOutput, WorkEnd
from cluster.errors import InvalidRequest
from cluster.members.base import (
    Draw,
    Emit,
    MemberInfo,
    Rank,
    RunEnd,
    SequenceStart,
    Step,
    StepEvent,
    StepToken,
    TopCandidate,
)
from cluster.members.judge import RunJudge
from cluster.members.opening import EngineFront, ReplicaSequence
from cluster.members.reply import Reply
from cluster.randomness import Purpose
from cluster.text.grammar import Guide
from cluster.text.member import MemberText


class TokenSequence(ReplicaSequence):
    """The reply as this member tokenizes it, and the run that is drawn."""

    def __init__(
        self,
        member: MemberInfo,
        text: MemberText,
        engine: EngineFront,
        start: SequenceStart,
        emit: Emit,
        on_close: Callable[[int], object],
    ) -> None:
        super().__init__(member, text, engine, start, emit, on_close)
        self._reply = Reply(start.form, text)
        self._guide: Guide | None = None
        self._judge: RunJudge | None = None
        self._places: Iterator[int] = iter(())  # in the reply, of what is drawn within a draft

    def _prepare(self) -> list[int]:
        ids = super()._prepare()
        if self._start.format is not None:
            self._guide = self._text.guide(self._start.format)
        return ids

    def _begin_step(self, step: Step) -> None:
        self._check_ids(step.token_ids)
        keep, ids = self._reply.apply(step), self._reply.ids
        self._places = iter(())
        want: Sample | Score | engine.Rank
        if isinstance(step.want, Draw):
            want = self._sample(step.want)
            want.num_scored = len(step.token_ids) if step.want.score_news else 0
        elif isinstance(step.want, Rank):
            want = self._rank(step.want)
            want.num_scored = len(step.token_ids) if step.want.score_news else 0
        else:
            targets = self._text.canonical.encode(step.want.text)
            self._check_room(targets)
            self._reply.add(targets)
            want = Score(len(targets), self._start.sampling)
            want.num_scored = len(targets) if step.want.score_news else 0
        self._submit(keep, ids, want)

    def _sample(self, draw: Draw) -> Sample:
        text, doubt = self._text, draw.doubt
        judge = RunJudge(
            draw,
            seed=self._start.seed,
            token_bytes=text.token_bytes,
            end_ids=text.end_ids,
            before=self._reply.tail() if draw.looks_back else b"",
        )
        self._judge = judge
        if draw.num_drafted:
            begin = len(self._reply.ids) - draw.num_drafted
            self._places = iter([begin + at for at in draw.checked])
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
            num_drafted=draw.num_drafted,
            checked=draw.checked,
            by_id=draw.by_id,
            doubt=None
            if doubt is None
            else engine.Doubt(doubt.measure, doubt.threshold, judge.hands_over),
        )

    def _rank(self, rank: Rank) -> engine.Rank:
        first = rank.position - rank.num_positions + 1
        num_early = min(rank.num_positions, max(0, self._start.end_allowed_from - first))
        return engine.Rank(
            params=self._start.sampling if rank.is_warped else None,
            num_top=rank.num_top,
            ids=rank.ids,
            banned=self._text.end_ids if num_early else (),
            num_banned=num_early,
            with_state=rank.with_state,
            allowed=self._allowed(),
            num_positions=rank.num_positions,
        )

    def _allowed(self) -> Allowed | None:
        """What may follow the prompt and the reply so far, where the reply has a format."""
        guide, num_prompt = self._guide, len(self._prompt_ids)
        return None if guide is None else lambda ids: guide.allowed(ids[num_prompt:])

    def _check_ids(self, ids: tuple[int, ...]) -> None:
        """Refuse what this member has no token for: callers tell what they got of a reply."""
        num_ids = len(self._text.token_bytes)
        if ids and max(ids) >= num_ids:
            raise InvalidRequest(
                "UNKNOWN_TOKEN",
                f"got id {max(ids)}; expected ids below {num_ids}, as member "
                f"{self._member.member!r} has them",
                field="resumption.tokens",
            )

    def _check_room(self, targets: list[int]) -> None:
        room = self._member.max_context - len(self._prompt_ids) - len(self._reply.ids)
        if not targets or len(targets) > room:
            raise InvalidRequest(
                "CONTINUATION_TOO_LONG" if targets else "EMPTY_CONTINUATION",
                f"the continuation has {len(targets)} tokens for member "
                f"{self._member.member!r}; between 1 and {room} fit after the prompt",
                field="continuation",
            )

    def _go_on(self, output: Output) -> None:
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
        if self._judge is not None:
            self._take(token.token for token in output.tokens)
        if output.end is not None:
            event.end = self._run_end(output.end)
            self._judge = None
        self._tell(event)

    def _run_end(self, end: WorkEnd) -> RunEnd:
        if end is WorkEnd.CANCELLED:
            return RunEnd.CANCELLED
        if end is WorkEnd.CONTEXT_FULL:
            return RunEnd.CONTEXT_FULL
        if self._judge is None or self._judge.end is None:  # scored, ranked, or a draft is refuted
            return RunEnd.COMPLETE
        return self._judge.end

    def _take(self, ids: Iterable[int]) -> None:
        """Add what was drawn; in a draft, it may be there already, or stand where another was."""
        for token in ids:
            place = next(self._places, len(self._reply.ids))
            if self._reply.ids[place : place + 1] != [token]:
                del self._reply.ids[place:]
                self._reply.add([token])

    def _token(self, token: TokenOutput) -> StepToken:
        spelled = self._text.token_bytes
        return StepToken(
            token.token,
            spelled[token.token],
            token.logprob,
            tuple(TopCandidate(id, spelled[id], logprob) for id, logprob in token.top),
        )
