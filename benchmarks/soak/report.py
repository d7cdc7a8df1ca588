"""What a soak says: one row per process, judged, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.soak.flatness import Allowance, Trend, trend_of
from benchmarks.soak.load import NUM_STREAMS, Load
from benchmarks.soak.samples import Held
from benchmarks.timeline import Panel
from deployments.stages import MEMBER_PREFIX

WARM_UP_SHARE = 0.3  # of the run: allocators, caches and tables fill up to their limits
MEMORY = Allowance(share=0.02, amount=4.0)  # MiB
COUNTS = Allowance(share=0.0, amount=1.0)  # descriptors, threads

_BIN_S = 10.0

Samples = dict[str, list[tuple[float, Held]]]  # by process: (seconds, what it held)


@dataclass(slots=True)
class Soak:
    """One run."""

    machine: str
    seconds: float
    load: Load = field(default_factory=Load)
    samples: Samples = field(default_factory=dict)
    num_open_leases: int = 0  # at the end, with every stream closed
    num_open_sequences: int = 0
    num_takeovers: int = 0  # by another replica, for no fault: one was taken for dead

    @property
    def warm_up_s(self) -> float:
        """When fitting begins."""
        return WARM_UP_SHARE * self.seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """One process, judged."""

    memory: Trend  # MiB
    files: Trend
    threads: Trend

    @property
    def is_flat(self) -> bool:
        """Whether nothing of it grows."""
        return (
            self.memory.is_flat(MEMORY)
            and self.files.is_flat(COUNTS)
            and self.threads.is_flat(COUNTS)
        )


def verdicts(soak: Soak) -> Mapping[str, Verdict]:
    """By process."""

    def trend(samples: Sequence[tuple[float, Held]], read: Callable[[Held], float]) -> Trend:
        return trend_of([(time_s, read(held)) for time_s, held in samples], soak.warm_up_s)

    return {
        name: Verdict(
            trend(samples, lambda held: held.private_mib),
            trend(samples, lambda held: held.num_files),
            trend(samples, lambda held: held.num_threads),
        )
        for name, samples in soak.samples.items()
    }


def as_markdown(soak: Soak) -> str:
    """The run in a sentence, then a row per process."""
    load, num_whole = soak.load, len(soak.load.ends_s)
    lines = [
        f"{soak.machine}. {soak.seconds / 60:g} minutes, {NUM_STREAMS} streams: {num_whole:,} "
        f"replies read to their end, {load.num_left:,} left in the middle. "
        f"Of {num_whole - len(load.first):,} replies to a seed that had been asked before, "
        f"{load.num_different} said anything else. "
        f"Open afterwards: {soak.num_open_leases} leases, {soak.num_open_sequences} sequences. "
        f"Replicas taken for dead: {soak.num_takeovers}.",
        "",
        "| process | memory, MiB | growth, MiB (± noise) | files | threads | flat |",
        "|---|---|---|---|---|---|",
    ]
    for name, verdict in verdicts(soak).items():
        memory = verdict.memory
        lines.append(
            f"| {name} | {memory.level:.1f} | {memory.growth:+.2f} (± {memory.noise:.2f}) "
            f"| {verdict.files.level:g} | {verdict.threads.level:g} "
            f"| {'yes' if verdict.is_flat else 'no'} |"
        )
    return "\n".join(lines)


def panels_of(soak: Soak) -> list[Panel]:
    """What the picture shows."""

    members = {
        name: [(time_s, held.private_mib) for time_s, held in samples]
        for name, samples in soak.samples.items()
        if name.startswith(MEMBER_PREFIX)
    }
    others = {
        name: [(time_s, held.private_mib) for time_s, held in samples]
        for name, samples in soak.samples.items()
        if name not in members
    }

    def total(read: Callable[[Held], int]) -> list[tuple[float, float]]:
        rounds = zip(*soak.samples.values(), strict=True)
        return [(round_[0][0], sum(read(held) for _, held in round_)) for round_ in rounds]

    num_bins = int(soak.seconds / _BIN_S)
    ended = [0] * num_bins
    for end_s in soak.load.ends_s:
        if end_s < num_bins * _BIN_S:
            ended[int(end_s / _BIN_S)] += 1
    rate = [((number + 0.5) * _BIN_S, num / _BIN_S) for number, num in enumerate(ended)]
    return [
        Panel("MiB", members),
        Panel("MiB", others),
        Panel("open files, all processes", {"": total(lambda held: held.num_files)}),
        Panel("threads, all processes", {"": total(lambda held: held.num_threads)}),
        Panel("replies per second", {"": rate}),
    ]
