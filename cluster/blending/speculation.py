"""How far a drafter may run ahead of those who decide: by what was measured, never by the text.

Drafter and decider draw with the same noise (docs/decisions/0028), so a draft is accepted where
both draws agree, and the text is the same however long drafts are. Hence the length is free to
follow measurements. The model is that of Leviathan, Kalman and Matias (2211.17192, section 3.1),
for a draft of which only some positions are decided by others: those of a mixture's schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_MEMORY = 64.0  # units of weight after which a measurement counts for 1/e
_LEAST_TOKENS = 4.0  # plain ones of each member, before anything is decided
_LEAST_DRAFTS = 16.0  # by fewer, agreement is not known to a tenth
_FIRST_LENGTH = 4  # of drafts whose agreement is not known yet
_LEAST_SPEEDUP = 1.05  # what is gained by less is noise
# The other way is looked at again now and then, since times change; by what costs some 2 % at most.
_DRAFTS_PER_PLAIN_TURN = 64
_TOKENS_PER_LOOK = 256
_LOOK_LENGTH, _LOOK_DRAFTS = 2, 4


@dataclass(frozen=True, slots=True)
class Speculation:
    """Who drafts, and how far at most."""

    draft: int  # index into the blend's members
    max_tokens: int
    always: bool  # the most each time, whether it pays or not


@dataclass(frozen=True, slots=True)
class Measured:
    """What a draft's length is chosen by. Seconds may be any unit that all three have."""

    agreement: float  # how often a decided token was the drafted one, 0 to 1
    share_decided: float  # of positions that others than the drafter decide, 0 to 1
    draft_s: float  # per drafted token
    decide_s: float  # per draft: one pass of the slowest member that decides
    plain_s: float  # per token without drafts


def expected_tokens(measured: Measured, num_drafted: int) -> float:
    """How many tokens stand after a draft: those up to the first refuted, and one more.

    (1 - s^(n+1)) / (1 - s), where s is the chance that a drafted position stands.
    """
    stands = 1 - measured.share_decided * (1 - measured.agreement)
    if stands >= 1:
        return num_drafted + 1.0
    return (1 - stands ** (num_drafted + 1)) / (1 - stands)


def speedup(measured: Measured, num_drafted: int) -> float:
    """How much faster than without drafts, where each has so many tokens."""
    time_s = num_drafted * measured.draft_s + measured.decide_s
    return expected_tokens(measured, num_drafted) * measured.plain_s / time_s


def best_length(measured: Measured, max_tokens: int) -> int:
    """The draft length that pays most; 0 where none is worth it."""
    best = max(range(1, max_tokens + 1), key=lambda num: speedup(measured, num))
    return best if speedup(measured, best) >= _LEAST_SPEEDUP else 0


@dataclass(slots=True)
class _Rate:
    """A ratio of sums in which what is long past counts for little."""

    above: float = 0.0
    below: float = 0.0

    def add(self, above: float, below: float) -> None:
        kept = max(0.0, 1 - below / _MEMORY)
        self.above = self.above * kept + above
        self.below = self.below * kept + below

    @property
    def value(self) -> float:
        return self.above / self.below


@dataclass(slots=True)
class Drafting:
    """What a blend's drafts have cost and brought so far, and how long the next one is to be.

    One per blend and router, for all its replies: what it decides changes no text. It begins with
    tokens without drafts, to know what these cost, then tries drafts, then does what pays.
    """

    _num_plain: int = 0  # tokens since drafts were looked at, where these do not pay
    _num_drafts: int = 0  # since a plain turn was looked at, where drafts do
    _num_looks: int = 0  # drafts still to be tried of such a look
    _plain: dict[int, _Rate] = field(default_factory=dict)  # seconds per token, by who spoke
    _draft: _Rate = field(default_factory=_Rate)  # seconds per drafted token
    _decide: _Rate = field(default_factory=_Rate)  # seconds per draft
    _agreement: _Rate = field(default_factory=_Rate)  # tokens agreed per token decided

    def next_length(self, speculation: Speculation, shares: Mapping[int, float]) -> int:
        """Tokens to draft in the next turn; 0: none.

        `shares`: of the tokens, by the members that speak in turns; by one key for those who
        speak together.
        """
        if speculation.always:
            return speculation.max_tokens
        if any(self._rate_of(member).below < _LEAST_TOKENS for member in shares):
            return 0
        if self._decide.below < _LEAST_DRAFTS:
            return min(_FIRST_LENGTH, speculation.max_tokens)
        best = best_length(self.measured(speculation, shares), speculation.max_tokens)
        if best and self._num_drafts < _DRAFTS_PER_PLAIN_TURN:
            return best
        if best:
            self._num_drafts = 0
            return 0
        if self._num_plain >= _TOKENS_PER_LOOK:
            self._num_plain, self._num_looks = 0, _LOOK_DRAFTS
        if not self._num_looks:
            return 0
        self._num_looks -= 1
        return min(_LOOK_LENGTH, speculation.max_tokens)

    def measured(self, speculation: Speculation, shares: Mapping[int, float]) -> Measured:
        """All that was measured, in one."""
        own = shares.get(speculation.draft, 0.0) if len(shares) > 1 else 0.0
        return Measured(
            agreement=self._agreement.value if self._agreement.below else 1.0,
            share_decided=1 - own,
            draft_s=self._draft.value,
            decide_s=self._decide.value,
            plain_s=sum(self._rate_of(member).value * share for member, share in shares.items()),
        )

    def note_plain(self, member: int, num_tokens: int, seconds: float) -> None:
        """A run without a draft, by one member or, under the key of the first, by all together."""
        self._rate_of(member).add(seconds, num_tokens)
        self._num_plain += num_tokens

    def note_draft(self, num_tokens: int, seconds: float) -> None:
        """A draft was made."""
        self._draft.add(seconds, num_tokens)

    def note_decision(self, num_decided: int, num_agreed: int, seconds: float) -> None:
        """It was decided on: up to the first that did not agree, so many times."""
        self._decide.add(seconds, 1)
        self._num_drafts += 1
        self._agreement.add(num_agreed, num_decided)

    def _rate_of(self, member: int) -> _Rate:
        return self._plain.setdefault(member, _Rate())
