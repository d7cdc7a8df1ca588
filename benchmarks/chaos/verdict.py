"""What a run of chaos has shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from deployments.bench.markdown import table


@dataclass
class Verdict:
    """What was done, what became of the streams, and what was left."""

    machine: str
    seed: int
    seconds: float
    streams: int
    harm: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    harm_errors: list[str] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    taken_over: int = 0
    broken: dict[str, int] = field(default_factory=dict)  # by the status they ended with
    different: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    not_resumed: list[str] = field(default_factory=list)
    leases: int = -1
    sequences: int = -1
    kv_fill: float = -1.0
    processes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, nothing was wrong, and nothing is left."""
        wrong = (self.different, self.unnamed, self.not_resumed, self.processes)
        return not any(wrong) and self.leases == self.sequences == 0 and self.kv_fill == 0.0


def as_markdown(verdict: Verdict) -> str:
    """The counts, for a page."""
    wrong = len(verdict.different) + len(verdict.unnamed) + len(verdict.not_resumed)
    broken = ", ".join(f"{num} {reason}" for reason, num in verdict.broken.items()) or "none"
    rows = [
        ("faults", ", ".join(f"{num} × {name}" for name, num in verdict.harm.items())),
        ("replies finished", str(sum(verdict.finished.values()))),
        ("of these taken over by another replica", str(verdict.taken_over)),
        ("of these resumed over a router's death", str(verdict.resumed)),
        ("texts that differ from their undisturbed twin", str(len(verdict.different))),
        ("streams that ended early, by status", broken),
        ("of these that could not be resumed to their twin's text", str(len(verdict.not_resumed))),
        ("leases, sequences, processes left", _left(verdict)),
    ]
    return "\n".join(
        [
            f"{verdict.machine}. Seed {verdict.seed}, {verdict.seconds:g} s of faults, "
            f"{verdict.streams} streams at a time. {wrong} defects.",
            "",
            *table(("", "count"), rows),
        ]
    )


def _left(verdict: Verdict) -> str:
    return f"{verdict.leases}, {verdict.sequences}, {len(verdict.processes)}"
