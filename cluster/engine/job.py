"""A work under way: which tokens it still needs, which logits, and what it owes its owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster.engine.base import Chunk
from cluster.engine.sampler import SampleRow
from cluster.engine.types import (
    Output,
    Prefill,
    Rank,
    Sample,
    Score,
    TokenOutput,
    Verdict,
    Work,
    WorkEnd,
)
from cluster.errors import InvalidRequest
from cluster.randomness import Purpose, key


@dataclass(slots=True)
class Job:
    """One work, from its first step to its end."""

    sequence: int
    want: Sample | Score | Rank | Prefill
    ids: list[int]  # the sequence's, grows as tokens are drawn
    number: int  # by arrival
    last_step: int = 0  # in which it last rode
    turn: int = 0  # how many rides there had been when it last rode
    waits_since: int | None = None  # the step from which on it found no room
    num_drawn: int = 0  # tokens of the run that stand, those drafted by others among them
    num_told: int = 0  # positions that a Rank has told of
    next_logit: int = 0  # the position after the last one whose logits came
    scored: list[float] = field(default_factory=list)  # for `num_scored`
    targets: list[TokenOutput] = field(default_factory=list)  # of a Score
    num_passes: int = 0  # these three since the last output
    num_processed: int = 0
    num_cached: int = 0

    @property
    def end(self) -> int:
        """How many of the ids must be fed; after a score's last target nothing is asked."""
        return len(self.ids) - isinstance(self.want, Score)

    @property
    def first_logit(self) -> int:
        """The first position whose logits are wanted, so the cache may not cover it yet."""
        if isinstance(self.want, Prefill):
            return len(self.ids)
        num_before = max(self.num_scored, self.num_targets, self.num_ranked - 1, self.num_open)
        return max(self.next_logit, len(self.ids) - 1 - num_before)

    @property
    def num_scored(self) -> int:
        """How many of the last ids the model's own law scores; those drawn are not among them."""
        return 0 if isinstance(self.want, Prefill) or self.num_drawn else self.want.num_scored

    @property
    def num_targets(self) -> int:
        """How many of the last ids a Score's law scores."""
        return self.want.num_targets if isinstance(self.want, Score) else 0

    @property
    def num_ranked(self) -> int:
        """After how many of the last ids a Rank tells what may come."""
        return self.want.num_positions if isinstance(self.want, Rank) else 0

    @property
    def num_open(self) -> int:
        """How many of the last ids are drafted, and not decided yet."""
        if not isinstance(self.want, Sample):
            return 0
        return max(0, self.want.num_drafted - self.num_drawn)

    def make_chunk(self, start: int, num_tokens: int, pages: list[int]) -> Chunk:
        end = start + num_tokens
        num_logits = max(0, end - max(start, self.first_logit))
        return Chunk(self.sequence, start, self.ids[start:end], pages, num_logits)

    def draws_in(self, chunk: Chunk) -> list[tuple[int, int]]:
        """Which rows of the chunk's logits to draw from, and at which offset in the run each."""
        if not isinstance(self.want, Sample):
            return []
        first = chunk.start + len(chunk.ids) - chunk.num_logits
        num_left = self.num_open
        wanted = (*self.want.checked, self.want.num_drafted) if num_left else (self.num_drawn,)
        begin = len(self.ids) - num_left - self.num_drawn  # of the run, among the ids
        rows = ((begin + at - 1 - first, at) for at in wanted if at >= self.num_drawn)
        return [(row, at) for row, at in rows if 0 <= row < chunk.num_logits]

    def sample_row(self, at: int) -> SampleRow:
        """How to draw the token at an offset in the run; the ids before it are there."""
        assert isinstance(self.want, Sample)
        want, position = self.want, self.want.first_position + at
        purpose = want.first_purpose if at == 0 else Purpose.TOKEN
        banned = want.banned if position < want.banned_before else ()
        bits = key(want.seed, purpose, position)
        allowed = self.allowed(max(0, want.num_drafted - at) if self.num_open else 0)
        return SampleRow(want.params, bits, banned, allowed, want.num_top, want.doubt, want.by_id)

    def allowed(self, num_after: int = 0) -> bytes | None:
        """The mask of the token with so many ids after it; whatever the work's own code raises."""
        assert isinstance(self.want, Sample | Rank)
        ids = self.ids[: len(self.ids) - num_after] if num_after else self.ids
        return None if self.want.allowed is None else self.want.allowed(ids)

    def ranks(self, num_rows: int) -> tuple[list[Rank], list[bytes | None]]:
        """What the next positions of a Rank are asked for, and the masks of each."""
        assert isinstance(self.want, Rank)
        want, places = self.want, range(self.num_told, self.num_told + num_rows)
        self.num_told += num_rows
        is_free = want.num_banned is not None
        wants = [
            replace(want, banned=()) if is_free and place >= (want.num_banned or 0) else want
            for place in places
        ]
        return wants, [self.allowed(want.num_positions - 1 - place) for place in places]

    def scored_by(self, chunk: Chunk, num_last: int) -> tuple[int, list[int]]:
        """Of the last ids, those that the chunk's logits score; before, the first one's row."""
        end = chunk.start + len(chunk.ids)
        first = max(end - chunk.num_logits, len(self.ids) - 1 - num_last)
        return first - (end - chunk.num_logits), self.ids[first + 1 : end + 1]

    def output(self, tokens: list[TokenOutput], end: WorkEnd | None, error: str = "") -> Output:
        """Tokens, or the end, with the counts since the last output."""
        output = Output(
            self.sequence,
            tokens,
            end,
            error,
            scored=self.scored,
            num_passes=self.num_passes,
            num_processed=self.num_processed,
            num_cached=self.num_cached,
        )
        self.scored = []
        self.num_passes = self.num_processed = self.num_cached = 0
        return output

    def draw(
        self, at: int, token: TokenOutput, max_context: int
    ) -> tuple[list[TokenOutput], WorkEnd | None]:
        """Let the judge decide on a token just drawn: what to report, and whether that was all."""
        assert isinstance(self.want, Sample)
        while self.num_drawn < at:  # what others drafted before it stands
            self.want.judge(self.ids[len(self.ids) - self.num_open])
            self.num_drawn += 1
        num_open = self.num_open
        self.num_drawn += 1
        doubt = self.want.doubt
        if doubt is not None and token.in_doubt and doubt.hand_over(token.token):
            return [], WorkEnd.DONE
        verdict = self.want.judge(token.token)
        is_guessed = num_open > 0 and self.ids[-num_open] == token.token
        if is_guessed and verdict is Verdict.KEEP:
            return [token], None
        if num_open:
            del self.ids[-num_open:]
        if verdict is Verdict.DROP_AND_STOP:
            return [], WorkEnd.DONE
        self.ids.append(token.token)
        if num_open or verdict is Verdict.KEEP_AND_STOP:
            return [token], WorkEnd.DONE
        return [token], WorkEnd.CONTEXT_FULL if len(self.ids) >= max_context else None


def check_work(work: Work, num_ids: int, vocab_size: int) -> None:
    """Refuse what the sequence, of `num_ids` so far, or the model cannot take."""
    if not 0 <= work.start <= num_ids:
        message = f"{work.start}: the sequence has {num_ids} tokens to start from"
        raise InvalidRequest("WORK_START", message, field="start")
    _check_ids(work.tokens, vocab_size, "tokens")
    num_after = work.start + len(work.tokens)
    num_scored = 0 if isinstance(work.want, Prefill) else work.want.num_scored
    if num_scored and num_scored >= num_after:
        message = f"{num_scored}: of {num_after} tokens, the first cannot be scored"
        raise InvalidRequest("WORK_TARGETS", message, field="num_scored")
    match work.want:
        case Sample(banned=banned) | Rank(banned=banned):
            _check_ids(banned, vocab_size, "banned")
            if isinstance(work.want, Rank):
                _check_ids(work.want.ids, vocab_size, "ids")
                if not 1 <= work.want.num_positions <= max(1, num_after):
                    message = f"{work.want.num_positions}: there are 1 to {num_after} positions"
                    raise InvalidRequest("WORK_POSITIONS", message, field="num_positions")
            if isinstance(work.want, Sample):
                _check_draft(work.want, num_after)
            if num_after == 0:
                message = "an empty sequence: there must be a token to go on from"
                raise InvalidRequest("WORK_TOKENS", message, field="tokens")
        case Score(num_targets=num_targets):
            if not 1 <= num_targets < num_after:
                message = (
                    f"{num_targets}: of {num_after} tokens, 1 to {num_after - 1} can be scored"
                )
                raise InvalidRequest("WORK_TARGETS", message, field="num_targets")
        case Prefill():
            pass


def _check_draft(want: Sample, num_after: int) -> None:
    if want.num_drafted and want.num_drafted >= num_after:
        message = f"{want.num_drafted}: of {num_after} tokens, the first cannot be drafted"
        raise InvalidRequest("WORK_DRAFT", message, field="num_drafted")
    if any(not 0 <= at < want.num_drafted for at in want.checked):
        message = f"offsets must be in 0 to {want.num_drafted - 1}, within the draft"
        raise InvalidRequest("WORK_DRAFT", message, field="checked")


def _check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocab_size):
        message = f"token ids must be in 0 to {vocab_size - 1}"
        raise InvalidRequest("TOKEN_ID", message, field=name)
