"""A run as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from deployments.bench.cases import Key
from deployments.bench.figures import Figures, Spread
from deployments.bench.machine import Machine
from deployments.bench.markdown import number, table
from deployments.bench.races import Reading
from deployments.bench.rounds import Measured, Result
from deployments.bench.settings import Settings
from deployments.bench.targets import Target, targets_of
from deployments.bench.workload import Kind, Subject

FORMAT = 1  # of the JSON


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `cuvee bench`."""

    name: str  # of the blend file
    way: str  # how Cuvée ran
    machine: Machine
    models: Mapping[str, str]  # by member: model and dtype
    num_threads: int  # of torch, in each replica and each rival
    settings: Settings
    subjects: Sequence[Subject]
    measured: Measured
    reading: Reading | None = None

    @property
    def many(self) -> int:
        """Streams at which it is called saturated."""
        return max(self.settings.streams, default=1)

    @property
    def targets(self) -> list[Target]:
        """Ratios, with what is wanted of them."""
        return targets_of(self.measured.results, self.subjects, self.many, self.reading)


def as_markdown(run: Run) -> str:
    """What blending costs, what is asked of it, all figures, processors, messages."""
    parts = [_head(run)]
    if costs := _costs(run):
        parts.append(
            "What blending costs: each blend against its members alone, at their shares, with as "
            "many streams. For tokens/s more is better, for the others less:\n\n" + costs
        )
    if targets := run.targets:
        parts.append("Ratios within each round; what is wanted is Cuvée's own aim:\n\n")
        parts[-1] += "\n".join(
            table(("ratio", "wanted", "measured", ""), [_target_row(t) for t in targets])
        )
    parts.append(_figures(run))
    parts.append(_processors(run))
    return "\n\n".join(parts)


def as_json(run: Run) -> str:
    """Every figure of every round, its median and range, and the ratios."""
    results = run.measured.results
    content = {
        "format": FORMAT,
        "name": run.name,
        "way": run.way,
        "machine": asdict(run.machine),
        "models": dict(run.models),
        "num_threads": run.num_threads,
        "settings": asdict(run.settings),
        "took_s": round(run.measured.took_s, 1),
        "load_after": run.measured.load_after,
        "idle": asdict(run.measured.idle),
        "reading": asdict(run.reading) if run.reading else None,
        "targets": [
            asdict(target) | {"is_met": target.is_met, "reached": target.reached}
            for target in run.targets
        ],
        "cases": [
            {
                **asdict(result.key),
                "name": str(result.key),
                "is_served": result.is_served,
                "summary": {
                    column.name: asdict(Spread.of(result.values(column.name)))
                    for column in fields(Figures)
                },
                "rounds": [asdict(figures) for figures in result.rounds],
            }
            for result in results
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _head(run: Run) -> str:
    settings, limits = run.settings, run.settings.limits
    models = ", ".join(f"{name}: `{model}`" for name, model in run.models.items())
    return (
        f"{run.machine}, in the last minute {run.measured.load_after:.1f} with what was measured."
        "\n\n"
        f"Cuvée {run.way}. {models}; torch threads in each replica and each rival: "
        f"{run.num_threads}. Per reply {settings.num_prompt_words} words of prompt and "
        f"{settings.num_new_tokens} new tokens; {settings.num_rounds} rounds, "
        f"{run.measured.took_s:.0f} s in all. Figures are medians over rounds, in brackets the "
        f"lowest and highest round. A good reply begins within {limits.first_ms:.0f} ms and has "
        f"at most {limits.gap_ms:.0f} ms between tokens on average."
    )


def _costs(run: Run) -> str:
    """Blends beside the weighted mean of their members, at the same number of streams."""
    found = {result.key: result for result in run.measured.results}
    rows = []
    for subject in run.subjects:
        for streams in run.settings.streams:
            own = found.get(Key("closed", subject.name, streams))
            members = [found.get(Key("closed", n, streams)) for n in subject.weights]
            if subject.kind is Kind.MEMBER or own is None or not all(members):
                continue
            alone = [member for member in members if member is not None]
            rows.append(
                (
                    str(own.key),
                    *(_against(subject, own, alone, name) for name in _COMPARED),
                )
            )
    head = ("blend", "tokens/s", "first token", "between tokens", "processors", "passes")
    return "\n".join(table(head, rows)) if rows else ""


_COMPARED = ("tokens_per_s", "first_ms", "gap_mean_ms", "models_cpu_ms", "passes")


def _against(subject: Subject, own: Result, alone: Sequence[Result], name: str) -> str:
    shares = list(subject.weights.values())
    rounds = zip(*(member.values(name) for member in alone), strict=True)
    means = [sum(s * v for s, v in zip(shares, row, strict=True)) for row in rounds]
    ratios = [a / b for a, b in zip(own.values(name), means, strict=True) if b]
    return _spread(ratios) if ratios else ""


def _target_row(target: Target) -> tuple[str, ...]:
    wanted, met = "", ""
    if target.wanted is not None and target.reached is not None:
        wanted = f"{'≤' if target.is_most else '≥'} {target.wanted:g}"
        met = "met" if target.is_met else f"short by {100 * (1 - target.reached):.0f} %"
    return target.name, wanted, _words(target.measured), met


def _figures(run: Run) -> str:
    head = (
        "case",
        "tokens/s",
        "good replies/s",
        "first token, ms",
        "its p95",
        "between tokens, ms",
        "its p95",
        "passes per token",
        "tokens fed per token",
    )
    names = (
        "tokens_per_s",
        "good_per_s",
        "first_ms",
        "first_p95_ms",
        "gap_mean_ms",
        "gap_p95_ms",
        "passes",
        "processed",
    )
    rows = [
        (str(r.key), *(_spread(r.values(name)) for name in names)) for r in run.measured.results
    ]
    return "\n".join(table(head, rows))


def _processors(run: Run) -> str:
    """Where it is known; of rivals in their own rows."""
    idle = run.measured.idle
    head = ("case", "models", "router", "client", "steps", "messages", "bytes", "to clients")
    names = (
        "models_cpu_ms",
        "router_cpu_ms",
        "client_cpu_ms",
        "steps",
        "messages",
        "num_bytes",
        "client_messages",
    )
    rows = [
        (
            str(result.key),
            *(_spread(result.values(name)) if any(result.values(name)) else "" for name in names),
        )
        for result in run.measured.results
    ]
    return (
        "Per output token: milliseconds of processor time above what an idle cluster uses "
        f"({1000 * idle.router:.0f} ms per second in the router, {1000 * idle.models:.0f} in the "
        "replicas together); steps, messages and bytes between router and replicas, both ways; "
        "messages to clients.\n\n" + "\n".join(table(head, rows))
    )


def _spread(values: Sequence[float]) -> str:
    return _words(Spread.of(values))


def _words(spread: Spread) -> str:
    middle, low, high = (number(v) for v in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}–{high})"
