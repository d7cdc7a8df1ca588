"""Who is measured: Cuvée under several loads, and rivals; each in every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deployments.bench.arrivals import poisson
from deployments.bench.children import Child
from deployments.bench.loading import Load, Loaded, Loaders
from deployments.bench.races import Race, Rival
from deployments.bench.settings import Settings
from deployments.bench.workload import Job, Kind, Subject

ANEW = "a request for each token"
SIDE_BY_SIDE = "side by side"


@dataclass(frozen=True, slots=True)
class Key:
    """Which case it is; ratios are found by it."""

    what: str  # "closed", "open", ANEW, SIDE_BY_SIDE, or the rival's name
    subject: str
    amount: float = 1  # streams at a time, or requests per second

    def __str__(self) -> str:
        if self.what == "open":
            return f"{self.subject}, {self.amount:.3g} requests/s"
        streams = f"{self.amount:.0f} stream{'' if self.amount == 1 else 's'}"
        if self.what in ("closed", SIDE_BY_SIDE):
            return f"{self.subject}, {streams}"
        return f"{self.what}: {self.subject}" + (f", {streams}" if self.amount > 1 else "")


@dataclass(frozen=True, slots=True)
class Case:
    """One way to get replies."""

    key: Key
    num_jobs: int  # per round
    is_served: bool
    run: Callable[[Sequence[Job], int], Loaded]  # the second is the round's number, from 0


def served_cases(subjects: Sequence[Subject], settings: Settings, loaders: Loaders) -> list[Case]:
    """Every subject in closed loops, blends in open ones too, in the order they run."""
    closed = [
        _closed([subject], number, settings, loaders)
        for number in settings.streams
        for subject in subjects
    ]
    blends = [subject for subject in subjects if subject.kind is not Kind.MEMBER]
    opened = [
        _open(subject, rate, settings, loaders) for rate in settings.rates for subject in blends
    ]
    return closed + opened


def _closed(subjects: Sequence[Subject], number: int, settings: Settings, loaders: Loaders) -> Case:
    def run(jobs: Sequence[Job], round_number: int) -> Loaded:
        return loaders.ask(Load(subjects, jobs, settings.num_new_tokens, number))

    what = "closed" if len(subjects) == 1 else SIDE_BY_SIDE
    key = Key(what, " beside ".join(subject.name for subject in subjects), number)
    return Case(key, settings.num_alone if number == 1 else number, True, run)


def _open(subject: Subject, rate: float, settings: Settings, loaders: Loaders) -> Case:
    def run(jobs: Sequence[Job], round_number: int) -> Loaded:
        offsets_s = poisson(rate, len(jobs), settings.seed + round_number)
        return loaders.ask(Load([subject], jobs, settings.num_new_tokens, offsets_s=offsets_s))

    return Case(Key("open", subject.name, rate), settings.num_arrivals, True, run)


def rival_cases(
    subjects: Sequence[Subject],
    settings: Settings,
    loaders: Loaders,
    contest: Child[Loaded],
) -> list[Case]:
    """What the served cases are compared with."""
    many = max(settings.streams)
    members = [subject for subject in subjects if subject.kind is Kind.MEMBER]
    by_token = [subject for subject in subjects if subject.kind is Kind.BY_TOKEN]
    cases = [
        _raced(Rival.GENERATE, members[0], 1, settings, contest),
        _raced(Rival.LOOP, members[0], 1, settings, contest),
        *(_raced(Rival.ENGINE, member, 1, settings, contest) for member in members),
    ]
    for subject in by_token:
        cases += [
            _raced(Rival.MIXTURE, subject, 1, settings, contest),
            _raced(Rival.AVERAGE, subject, 1, settings, contest),
            _raced(Rival.OWN_AVERAGE, subject, 1, settings, contest),
            _raced(Rival.OWN_PARALLEL, subject, 1, settings, contest),
            _anew(subject, settings, loaders),
        ]
    if many > 1:
        cases += [
            _raced(Rival.BATCH, members[0], many, settings, contest),
            *(_raced(Rival.ENGINE_BATCH, member, many, settings, contest) for member in members),
        ]
        cases += [
            _closed([by_name[name] for name in subject.weights], many, settings, loaders)
            for by_name in [{member.name: member for member in members}]
            for subject in _pairs(by_token, many)
        ]
    return cases


def _pairs(subjects: Sequence[Subject], many: int) -> list[Subject]:
    """Of all blends of the same members one, where the streams can be shared evenly."""
    found: dict[tuple[str, ...], Subject] = {}
    for subject in subjects:
        if len(subject.weights) > 1 and many % len(subject.weights) == 0:
            found.setdefault(tuple(subject.weights), subject)
    return list(found.values())


def _raced(
    rival: Rival, subject: Subject, number: int, settings: Settings, contest: Child[Loaded]
) -> Case:
    def run(jobs: Sequence[Job], round_number: int) -> Loaded:
        return contest.ask(Race(rival, subject, jobs, settings.num_new_tokens))

    key = Key(rival.value, subject.name, number)
    return Case(key, settings.num_alone if number == 1 else number, False, run)


def _anew(subject: Subject, settings: Settings, loaders: Loaders) -> Case:
    def run(jobs: Sequence[Job], round_number: int) -> Loaded:
        return loaders.ask(Load([subject], jobs, settings.num_new_tokens, anew=True))

    return Case(Key(ANEW, subject.name), settings.num_alone, True, run)
