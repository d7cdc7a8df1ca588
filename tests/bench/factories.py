"""A run that was never measured: every case's figures are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from deployments.bench.cases import Key
from deployments.bench.figures import CpuSeconds, Figures
from deployments.bench.machine import Machine
from deployments.bench.races import Reading
from deployments.bench.report import Run
from deployments.bench.rounds import Measured, Result
from deployments.bench.settings import Settings
from deployments.bench.workload import Ask, Kind, Subject

A = Subject(Ask("a", "pair", "a"), Kind.MEMBER, {"a": 1.0})
B = Subject(Ask("b", "pair", "b"), Kind.MEMBER, {"b": 1.0})
PAIR = Subject(Ask("pair", "pair"), Kind.BY_TOKEN, {"a": 0.75, "b": 0.25})
MACHINE = Machine(
    "a processor", 2, 8, "3.11.7", {"torch": "2.13.0"}, "0123abc", "2026-01-02T03:04+00:00", 0.1
)


def figures(**given: float) -> Figures:
    """All 1, but those that are given."""
    return Figures(**{field.name: given.get(field.name, 1.0) for field in fields(Figures)})


def result(key: Key, **by_round: Sequence[float]) -> Result:
    """Each figure by round."""
    rounds = [
        figures(**dict(zip(by_round, row, strict=True)))
        for row in zip(*by_round.values(), strict=True)
    ]
    return Result(key, key.what in ("closed", "open"), rounds)


def run_of(cases: Mapping[Key, Mapping[str, Sequence[float]]], many: int = 16) -> Run:
    """Of two members and their mixture by token."""
    results = [result(key, **by_round) for key, by_round in cases.items()]
    return Run(
        name="given",
        way="without Ray",
        machine=MACHINE,
        models={"a": "embedded:tiny-austen, float32", "b": "embedded:tiny-kjv, float32"},
        num_threads=1,
        settings=Settings(streams=(1, many), num_rounds=len(results[0].rounds)),
        subjects=[A, B, PAIR],
        measured=Measured(results, CpuSeconds(), 3.0, 1.5),
        reading=Reading(1e9, {"a": 4_000_000, "b": 4_000_000}),
    )
