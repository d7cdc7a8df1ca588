"""The engine's contract: what may be asked of it, and what it answers.

The engine knows token ids only. Text, members, blends, leases and seeds' meaning live above it.
A sequence's key-value state is a cache, never a promise: the engine may drop it at any time outside
a running step and recompute it from the token ids it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from cluster.distribution import Distribution
from cluster.errors import CuveeError
from cluster.randomness import Purpose


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a member's logits become the distribution a token is drawn from.

    Applied in this order: temperature, top-k, top-p, min-p. Temperature 0 takes the argmax
    (lowest id on ties) and ignores the truncations.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: no truncation
    top_p: float = 1.0
    min_p: float = 0.0


# Which ids may follow the sequence's, one bit per id, lowest bit first. Called on the engine's
# thread, once for each token to draw; what it raises fails the work that asked.
Allowed = Callable[[list[int]], bytes]


class Verdict(Enum):
    """What becomes of a token just sampled."""

    KEEP = "keep"
    KEEP_AND_STOP = "keep_and_stop"
    DROP_AND_STOP = "drop_and_stop"


@dataclass(frozen=True, slots=True)
class Doubt:
    """When a model is not sure enough of the next token, by its own distribution."""

    measure: Literal["confidence", "entropy"]  # the largest probability, or Σ -p log p in nats
    threshold: float  # in doubt below it, or above it
    hand_over: Callable[[int], bool]  # asked of a token drawn in doubt; True drops it and stops


@dataclass(slots=True)
class Sample:
    """Draw tokens one after another until `judge` stops the run.

    The token drawn as the i-th of this run (from 0) uses the random bits of
    (seed, purpose, first_position + i); the first one uses `first_purpose`. After a `Rank` without
    news in between, the first one takes no pass.

    The work's last `num_drafted` tokens may be a draft of the run's first ones. The model then
    draws at the offsets `checked`, all from one pass, and takes the others as they are. The first
    draw that is not the drafted token stands, what was drafted after it is dropped, and the work
    ends. If all agree, the run goes on behind the draft. Only what the model drew is reported.
    """

    params: SamplingParams
    seed: int
    first_position: int
    judge: Callable[[int], Verdict]  # called once per sampled id, on the engine's thread
    first_purpose: Purpose = Purpose.TOKEN
    banned: tuple[int, ...] = ()  # ids that may not be drawn ...
    banned_before: int = 0  # ... while the position is below this
    allowed: Allowed | None = None  # only these may be drawn
    num_top: int = 0  # how many top candidates to report per token
    num_scored: int = 0  # report the model's own log-probabilities of this many last tokens
    doubt: Doubt | None = None
    num_drafted: int = 0
    checked: tuple[int, ...] = ()  # ascending, below num_drafted
    by_id: bool = False  # race among all ids, as `blending.warping.draw` does, not among blocks


@dataclass(slots=True)
class Score:
    """Log-probability of each of the last `num_targets` of the work's tokens, given all before."""

    num_targets: int
    params: SamplingParams = SamplingParams()
    num_scored: int = 0  # as in `Sample`


@dataclass(slots=True)
class Rank:
    """Tell the distribution of the next token. Asked again without news, it takes no pass."""

    params: SamplingParams | None  # None: the model's own, before temperature and truncation
    num_top: int = 0  # how many likeliest ids to tell; 0: all
    ids: Sequence[int] = ()  # tell these too
    banned: tuple[int, ...] = ()  # ids that have no part in it ...
    num_banned: int | None = None  # ... in the first so many positions; None: in all
    with_state: bool = False  # tell the hidden state, too, that the distribution is made from
    allowed: Allowed | None = None  # only these have
    num_scored: int = 0  # as in `Sample`
    num_positions: int = (
        1  # tell of the token after each of this many last ones, in one output each
    )


@dataclass(slots=True)
class Prefill:
    """Only bring the cache up to date with the tokens."""


@dataclass(slots=True)
class Work:
    """One request: the sequence becomes `ids[:start] + tokens`, then `want` is carried out."""

    sequence: int
    start: int
    tokens: Sequence[int]
    want: Sample | Score | Rank | Prefill


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token, with its log-probability under the member's own distribution.

    For `Sample`, log-probabilities are the model's before temperature and truncation; for `Score`,
    under the distribution warped by the asked-for parameters.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability), best first
    in_doubt: bool = False  # by the measure that the work asked for


class WorkEnd(Enum):
    """Why a work is over."""

    DONE = "done"  # judged to stop, scored, or prefilled
    CONTEXT_FULL = "context_full"  # the model's context length is used up
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(slots=True)
class Output:
    """What one engine step gave one work; a work gets outputs until one has an `end`."""

    sequence: int
    tokens: list[TokenOutput] = field(default_factory=list)
    end: WorkEnd | None = None
    error: str = ""  # for FAILED
    cause: CuveeError | None = None  # for FAILED: what the work's own judge or mask raised
    scored: Sequence[float] = ()  # the log-probabilities that `num_scored` asks for
    distribution: Distribution | None = None  # for Rank
    state: Sequence[float] = ()  # for Rank, where asked for
    num_passes: int = 0  # forward passes this sequence took part in since its last output
    num_processed: int = 0  # tokens fed through the model since its last output
    num_cached: int = (
        0  # tokens found in the cache (prefix shared with others) since its last output
    )


@dataclass(slots=True)
class EngineCounts:
    """Exact totals since the engine was made."""

    forward_passes: int = 0
    tokens_processed: int = 0
    tokens_sampled: int = 0
    tokens_shared: int = 0  # taken from another sequence's pages instead of being processed
    evictions: int = 0  # sequences whose cached state was dropped to make room


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What an engine's time went to, in seconds since it was made; only ever grows."""

    busy_s: float = 0.0  # in steps
    working_s: float = 0.0  # of works: each counts while it is under way, whether it rides or waits
    waiting_s: float = 0.0  # of works that did not ride in the step

    def __add__(self, other: EngineTimes) -> EngineTimes:
        return EngineTimes(
            self.busy_s + other.busy_s,
            self.working_s + other.working_s,
            self.waiting_s + other.waiting_s,
        )


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is now."""

    num_sequences: int  # open
    num_running: int  # with unfinished work that rode in the last step
    num_waiting: int  # with unfinished work that did not
    num_pages: int
    num_free_pages: int  # never used, or holding only evictable state
    num_open_pages: int  # holding state of open sequences, at work or not
