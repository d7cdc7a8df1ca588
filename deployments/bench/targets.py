"""What Cuvée is to reach, and what this run measured: ratios within each round. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deployments.bench.cases import ANEW, SIDE_BY_SIDE, Key
from deployments.bench.figures import Spread
from deployments.bench.races import Reading, Rival
from deployments.bench.rounds import Result
from deployments.bench.workload import Kind, Subject

_OWN_AVERAGE = {2: 1.8, 3: 2.6}  # by members: at least
_PARALLEL = 5.0
_SATURATED = 0.85
_STEP = 1.15
_GENERATE = 1.0
_BANDWIDTH = 2.0
_BATCH = 6.0


@dataclass(frozen=True, slots=True)
class Target:
    """One ratio."""

    name: str
    measured: Spread
    wanted: float | None = None  # None: nothing is promised, it is worth knowing
    is_most: bool = False  # the target is an upper limit

    @property
    def is_met(self) -> bool | None:
        """By the median; None where nothing is wanted."""
        if self.wanted is None:
            return None
        middle = self.measured.median
        return middle <= self.wanted if self.is_most else middle >= self.wanted

    @property
    def reached(self) -> float | None:
        """1 where it is just met, more where it is exceeded, whichever way is better."""
        if self.wanted is None:
            return None
        middle = self.measured.median
        return self.wanted / middle if self.is_most else middle / self.wanted


def targets_of(
    results: Sequence[Result],
    subjects: Sequence[Subject],
    many: int,
    reading: Reading | None = None,
) -> list[Target]:
    """All ratios that the cases of this run allow; `many` streams are called saturation."""
    found = {result.key: result for result in results}
    return [
        *_against_ensembles(found, subjects),
        *_steps(found, subjects),
        *_saturated(found, subjects, many),
        *_engine(found, subjects, many, reading),
    ]


Found = Mapping[Key, Result]


def _against_ensembles(found: Found, subjects: Sequence[Subject]) -> Iterator[Target]:
    for subject in subjects:
        num = len(subject.weights)
        if subject.kind is not Kind.BY_TOKEN or num < 2:
            continue
        own = found.get(Key("closed", subject.name, 1))
        rows = (
            (Rival.OWN_AVERAGE.value, "a sequential ensemble on our engine", _OWN_AVERAGE.get(num)),
            (Rival.OWN_PARALLEL.value, "a parallel ensemble on our engine", _PARALLEL),
            (Rival.AVERAGE.value, "a sequential ensemble on transformers", None),
            (Rival.MIXTURE.value, "the same mixture on transformers", None),
            (ANEW, "a request for each token", None),
        )
        for what, words, wanted in rows:
            other = found.get(Key(what, subject.name))
            if own and other:
                ratios = _ratios(own.values("tokens_per_s"), other.values("tokens_per_s"))
                name = f"{subject.name} ({num} members), 1 stream: tokens/s against {words}"
                yield Target(name, Spread.of(ratios), wanted)


def _steps(found: Found, subjects: Sequence[Subject]) -> Iterator[Target]:
    """Between tokens, catch-up included, against the members' own steps."""
    for subject in subjects:
        own = found.get(Key("closed", subject.name, 1))
        steps = {n: found.get(Key(Rival.ENGINE.value, n)) for n in subject.weights}
        if subject.kind is not Kind.BY_TOKEN or own is None or not all(steps.values()):
            continue
        mean = _weighted(subject, {n: r.values("gap_mean_ms") for n, r in steps.items() if r})
        name = f"{subject.name}, 1 stream: time between tokens against its members' engine steps"
        yield Target(name, Spread.of(_ratios(own.values("gap_mean_ms"), mean)), _STEP, True)


def _saturated(found: Found, subjects: Sequence[Subject], many: int) -> Iterator[Target]:
    """Against its members, each with all the streams and the machine to itself."""
    for subject in subjects:
        own = found.get(Key("closed", subject.name, many))
        alone = {n: found.get(Key("closed", n, many)) for n in subject.weights}
        is_mixture = subject.kind in (Kind.BY_TOKEN, Kind.BY_REPLY)
        if not is_mixture or own is None or many == 1 or not all(alone.values()):
            continue
        each = {n: r.values("tokens_per_s") for n, r in alone.items() if r}
        ratios = _ratios(own.values("tokens_per_s"), _weighted(subject, each))
        name = f"{subject.name}, {many} streams: tokens/s against its members' weighted sum"
        wanted = _SATURATED if len(subject.weights) == 2 else None
        yield Target(name, Spread.of(ratios), wanted)
        beside = found.get(Key(SIDE_BY_SIDE, " beside ".join(subject.weights), many))
        if beside:
            ratios = _ratios(own.values("tokens_per_s"), beside.values("tokens_per_s"))
            name = f"{subject.name}, {many} streams: tokens/s against its members side by side"
            yield Target(name, Spread.of(ratios))


def _engine(
    found: Found, subjects: Sequence[Subject], many: int, reading: Reading | None
) -> Iterator[Target]:
    members = [subject.name for subject in subjects if subject.kind is Kind.MEMBER]
    first = members[0] if members else ""
    step = found.get(Key(Rival.ENGINE.value, first))
    if step is None:
        return
    gaps = step.values("gap_mean_ms")
    if other := found.get(Key(Rival.GENERATE.value, first)):
        name = f"engine, {first}, batch 1: decode speed against transformers generate"
        ratios = _ratios(other.values("gap_mean_ms"), gaps)
        yield Target(name, Spread.of(ratios), _GENERATE)
    if reading and (num_bytes := reading.weights.get(first)):
        floor_ms = 1000 * num_bytes / reading.bytes_per_s
        name = f"engine, {first}, batch 1: step against reading the weights once"
        yield Target(name, Spread.of([gap / floor_ms for gap in gaps]), _BANDWIDTH, True)
    if batch := found.get(Key(Rival.ENGINE_BATCH.value, first, many)):
        name = f"engine, {first}: {many} sequences against 1, tokens/s"
        ratios = _ratios(batch.values("tokens_per_s"), step.values("tokens_per_s"))
        yield Target(name, Spread.of(ratios), _BATCH)
    alone, all_of = (found.get(Key("closed", first, number)) for number in (1, many))
    if alone and all_of and many > 1:
        name = f"served, {first}: {many} streams against 1, tokens/s"
        ratios = _ratios(all_of.values("tokens_per_s"), alone.values("tokens_per_s"))
        yield Target(name, Spread.of(ratios), _BATCH)


def _weighted(subject: Subject, values: Mapping[str, Sequence[float]]) -> list[float]:
    """The members' values by round, each at its share."""
    rounds = zip(*(values[name] for name in subject.weights), strict=True)
    shares = subject.weights.values()
    return [math.fsum(s * v for s, v in zip(shares, row, strict=True)) for row in rounds]


def _ratios(own: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b if b else math.inf for a, b in zip(own, theirs, strict=True)]
