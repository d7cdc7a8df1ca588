"""How long a client goes on trying. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and for how long, the rest of a reply is asked for without a new token."""

    max_tries: int = 20
    total_s: float = 60.0
    first_delay_s: float = 0.1
    max_delay_s: float = 5.0
    waits_for_room: bool = True  # where a server is full, ask again when it says

    def delay_s(self, num_failures: int, chance: float) -> float:
        """How long to wait after so many failures in a row; `chance` is uniform in [0, 1)."""
        longest_s = min(self.max_delay_s, self.first_delay_s * 2.0 ** (num_failures - 1))
        return longest_s * (1 + chance) / 2  # so that many clients do not come back at once
