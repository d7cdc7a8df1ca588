"""A run by one member, on as many replicas as it takes."""

from __future__ import annotations

from cluster.errors import ReplicaLost
from cluster.members.base import RunEnd, StepEvent
from cluster.members.seat import Seat
from cluster.router.answers import Update
from cluster.router.plan import Plan
from cluster.router.seats import Seats
from cluster.router.steps import Speech, step_for
from cluster.router.transcript import Transcript


class Speaking:
    """A run is fixed when it is planned. If its replica is lost, another one of the same member is
    given the transcript and draws the rest of the run: the same tokens, because every uniform is
    fixed by its position.
    """

    def __init__(self, plan: Plan, speech: Speech, seats: Seats, transcript: Transcript) -> None:
        self.member = speech.run.member
        self.is_over = False
        self.end: RunEnd | None = None  # none, too, where a stop string or a loss ended the run
        self.fair_s: float | None = None  # what it took a member that knew what came before
        self._plan = plan
        self._speech = speech
        self._seats = seats
        self._transcript = transcript
        self._begun_at = transcript.position
        self._seat: Seat | None = None
        self._known = 0  # of the reply, by the seat when it began

    @property
    def num_said(self) -> int:
        """Tokens since it began, or since its last replica did."""
        return self._transcript.position - self._begun_at

    async def heard(self) -> Update:
        """Commits what comes next of it; raises what the replacement of a lost replica does."""
        try:
            seat = self._seat or await self._begin()
            event = await seat.heard()
        except ReplicaLost as error:
            self._seat = None
            await self._seats.lose(self.member, error)
            self.is_over = self._is_done
            return Update()
        return self._take(seat, event)

    async def _begin(self) -> Seat:
        seat, transcript = await self._seats.take(self.member), self._transcript
        self._known, self._begun_at = seat.known, transcript.position
        seat.begin(step_for(self._plan, self._speech, transcript, seat.known))
        self._seat = seat
        return seat

    def _take(self, seat: Seat, event: StepEvent) -> Update:
        update, transcript = Update(), self._transcript
        self._listen(event)
        if event.tokens:
            weights = self._speech.weights
            update = transcript.commit(self.member, event.tokens, weights=weights)
            seat.known = transcript.length
            self._seats.progress(self.member)
        if transcript.stop_string:
            self.is_over = True
        elif event.end is not None:
            self.is_over, self.end = True, event.end
            if self._known and self.num_said:
                self.fair_s = seat.step_s
        return update

    def _listen(self, event: StepEvent) -> None:
        """Note what the speaker thinks of what others said, and it itself."""
        evidence = self._plan.evidence
        if evidence is None:
            return
        if event.news_logprobs:
            evidence.note(self.member, self._known, event.news_logprobs)
        if event.tokens:
            logprobs = [token.logprob for token in event.tokens]
            evidence.note(self.member, self._transcript.position, logprobs)

    @property
    def _is_done(self) -> bool:
        """Whether a replica lost after the run's last token left nothing more to draw."""
        run, transcript = self._speech.run, self._transcript
        return transcript.position - run.position >= run.max_tokens and not transcript.is_torn
