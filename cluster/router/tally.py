"""What has become of the replies that one router has ended, by blend."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.errors import CuveeError
from cluster.router.answers import Outcome


@dataclass(slots=True)
class BlendTally:
    """One blend's replies so far."""

    num_replies: int = 0
    num_degraded: int = 0  # went on without a member
    num_takeovers: int = 0  # by another replica
    num_switches: int = 0  # of speaker
    finished: Counter[str] = field(default_factory=Counter)  # by reason
    # By member: tokens drawn, of prompts, found in caches, and read beyond prompts and own draws.
    drawn: Counter[str] = field(default_factory=Counter)
    prompt: Counter[str] = field(default_factory=Counter)
    cached: Counter[str] = field(default_factory=Counter)
    caught_up: Counter[str] = field(default_factory=Counter)
    leases: Counter[str] = field(default_factory=Counter)
    drafted: Counter[str] = field(default_factory=Counter)  # for others to decide on
    accepted: Counter[str] = field(default_factory=Counter)  # of these, what stood

    def share_of(self, member: str) -> float:
        """Of all tokens drawn; 0 before the first."""
        return self.drawn[member] / max(1, self.drawn.total())


class Tally:
    """Counts for as long as the router lives, whatever is applied meanwhile."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()  # replies that ended in an error, by its reason
        self._blends: dict[str, BlendTally] = {}

    def all(self) -> Mapping[str, BlendTally]:
        """Every blend's that has ended a reply."""
        return self._blends

    def of(self, blend: str) -> BlendTally:
        """The blend's counts; zeros where it has none."""
        return self._blends.get(blend, BlendTally())

    def add(self, outcome: Outcome, num_switches: int) -> None:
        """A reply has ended."""
        tally = self._blends.setdefault(outcome.blend, BlendTally())
        tally.num_replies += 1
        tally.num_degraded += bool(outcome.notices)
        tally.num_switches += num_switches
        tally.finished[outcome.finish_reason.value] += 1
        for usage in outcome.usage:
            member, seat = usage.member, usage.seat
            tally.num_takeovers += max(0, usage.leases - 1)
            tally.leases[member] += usage.leases
            tally.drawn[member] += usage.drawn_tokens
            tally.drafted[member] += usage.drafted_tokens
            tally.accepted[member] += usage.accepted_tokens
            tally.prompt[member] += seat.prompt_tokens
            tally.cached[member] += seat.cached_tokens
            num_read = seat.processed_tokens + seat.cached_tokens
            tally.caught_up[member] += max(0, num_read - seat.prompt_tokens - usage.drawn_tokens)

    @contextmanager
    def telling_failures(self) -> Iterator[None]:
        """Count what a reply ends in, other than its own end."""
        try:
            yield
        except CuveeError as error:
            self.failures[error.reason] += 1
            raise
        except (asyncio.CancelledError, GeneratorExit):  # the caller has gone, or its time is up
            self.failures["CANCELLED"] += 1
            raise
        except Exception:
            self.failures["INTERNAL"] += 1
            raise
