"""A work under way: which tokens it still needs, which logits, and what it owes its owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    num_drawn: int = 0
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
        num_before = max(self.num_scored, self.num_targets, self.num_ranked - 1)
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

    def make_chunk(self, start: int, num_tokens: int, pages: list[int]) -> Chunk:
        end = start + num_tokens
        num_logits = max(0, end - max(start, self.first_logit))
        return Chunk(self.sequence, start, self.ids[start:end], pages, num_logits)

    def sample_row(self) -> SampleRow:
        """How to draw the next token."""
        assert isinstance(self.want, Sample)
        want, position = self.want, self.want.first_position + self.num_drawn
        purpose = want.first_purpose if self.num_drawn == 0 else Purpose.TOKEN
        banned = want.banned if position < want.banned_before else ()
        bits = key(want.seed, purpose, position)
        allowed = self.allowed()
        return SampleRow(want.params, bits, banned, allowed, want.num_top, want.doubt)

    def allowed(self) -> bytes | None:
        """The mask of the next token, if it has one; whatever the work's own code raises."""
        assert isinstance(self.want, Sample | Rank)
        return None if self.want.allowed is None else self.want.allowed(self.ids)

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
        self, token: TokenOutput, max_context: int
    ) -> tuple[list[TokenOutput], WorkEnd | None]:
        """Let the judge decide on a token just drawn: what to report, and whether that was all."""
        assert isinstance(self.want, Sample)
        self.num_drawn += 1
        doubt = self.want.doubt
        if doubt is not None and token.in_doubt and doubt.hand_over(token.token):
            return [], WorkEnd.DONE
        verdict = self.want.judge(token.token)
        if verdict is Verdict.DROP_AND_STOP:
            return [], WorkEnd.DONE
        self.ids.append(token.token)
        if verdict is Verdict.KEEP_AND_STOP:
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


def _check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocab_size):
        message = f"token ids must be in 0 to {vocab_size - 1}"
        raise InvalidRequest("TOKEN_ID", message, field=name)
