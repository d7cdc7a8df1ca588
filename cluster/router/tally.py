"""What has become of the replies that one router has ended, by blend."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cluster.router.answers import Outcome


@dataclass(slots=True)
class BlendTally:
    """One blend's replies so far."""

    num_replies: int = 0
    num_degraded: int = 0  # went on without a member
    num_takeovers: int = 0  # by another replica
    drawn: Counter[str] = field(default_factory=Counter)  # tokens, by member

    def share_of(self, member: str) -> float:
        """Of all tokens drawn; 0 before the first."""
        return self.drawn[member] / max(1, self.drawn.total())


class Tally:
    """Counts for as long as the router lives, whatever is applied meanwhile."""

    def __init__(self) -> None:
        self._blends: dict[str, BlendTally] = {}

    def of(self, blend: str) -> BlendTally:
        """The blend's counts; zeros where it has none."""
        return self._blends.get(blend, BlendTally())

    def add(self, outcome: Outcome) -> None:
        """A reply has ended."""
        tally = self._blends.setdefault(outcome.blend, BlendTally())
        tally.num_replies += 1
        tally.num_degraded += bool(outcome.notices)
        for usage in outcome.usage:
            tally.num_takeovers += max(0, usage.leases - 1)
            tally.drawn[usage.member] += usage.drawn_tokens
