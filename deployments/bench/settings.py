"""What a run measures: sizes, loads, limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from deployments.bench.figures import Limits


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for every case of a run."""

    streams: tuple[int, ...] = (1, 16)  # closed loops: so many at a time
    rates: tuple[float, ...] = ()  # open loops: requests per second
    num_rounds: int = 5
    num_new_tokens: int = 64  # per reply
    num_prompt_words: int = 40
    num_alone: int = 4  # replies per round where there is one stream
    num_arrivals: int = 24  # requests per round of an open loop
    seed: int = 1  # of the arrivals
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises ValueError with the field, what was given, what would be right."""
        for name in ("num_rounds", "num_new_tokens", "num_prompt_words", "num_alone"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected 1 or more")
        if any(number < 1 for number in self.streams) or not (self.streams or self.rates):
            raise ValueError(f"streams: got {self.streams}; expected numbers of 1 or more")
        if any(rate <= 0 for rate in self.rates):
            raise ValueError(f"rates: got {self.rates}; expected numbers above 0")
