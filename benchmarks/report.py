"""A run as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

from benchmarks.counts import WireCounts
from benchmarks.figures import CpuSeconds, Figures, Spread
from benchmarks.markdown import number, table
from benchmarks.workload import Workload


@dataclass(slots=True)
class Result:
    """One case over all rounds."""

    case: str
    rivals: tuple[str, ...]
    is_served: bool
    rounds: list[Figures] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """One figure, by round."""
        return [float(getattr(figures, name)) for figures in self.rounds]


@dataclass(frozen=True, slots=True)
class Run:
    """One workload, measured."""

    workload: Workload
    machine: str
    results: Sequence[Result]
    wire: Sequence[WireCounts]
    idle: CpuSeconds  # per second
    took_s: float


def as_markdown(run: Run) -> str:
    """Three tables: figures, ratios against the rival of the same round, messages."""
    work = run.workload
    models = ", ".join(f"`{model}`" for model in work.models)
    lines = [
        f"{run.machine}.",
        "",
        f"Members {models}, {work.dtype}; torch threads in each replica and in the rivals: "
        f"{work.num_threads}. Per reply {work.num_prompt_words} words of prompt and "
        f"{work.num_new_tokens} new tokens; {work.num_rounds} rounds, {run.took_s:.0f} s in all. "
        "Figures are medians over rounds, in brackets the lowest and highest round.",
        "",
        *table(
            (
                "case",
                "tokens/s",
                "first token, ms",
                "its p95",
                "between tokens, ms",
                "its p95",
                "passes per token",
                "tokens fed per token",
            ),
            [
                (
                    result.case,
                    _spread(result.values("tokens_per_s")),
                    _spread(result.values("first_ms")),
                    _middle(result.values("first_p95_ms")),
                    _spread(result.values("gap_ms")),
                    _middle(result.values("gap_p95_ms")),
                    _middle(result.values("passes")),
                    _middle(result.values("processed")),
                )
                for result in run.results
            ],
        ),
        "",
        "Against the rival of the same round (for tokens/s more is better, for the others less):",
        "",
        *table(
            ("case", "against", "tokens/s", "first token", "between tokens"),
            [
                (result.case, rival, *(_ratios(run, result, rival, name) for name in _COMPARED))
                for result in run.results
                for rival in result.rivals
            ],
        ),
        "",
        "Processor time per output token, ms, above what an idle cluster uses: "
        f"{1000 * run.idle.router:.0f} ms per second in the router, "
        f"{1000 * run.idle.models:.0f} in the replicas together.",
        "",
        *table(
            ("case", "models", "router", "client"),
            [
                (
                    result.case,
                    _spread(result.values("models_cpu_ms")),
                    _spread(result.values("router_cpu_ms")) if result.is_served else "",
                    _spread(result.values("client_cpu_ms")) if result.is_served else "",
                )
                for result in run.results
            ],
        ),
        "",
        "Between router and replicas per output token, both ways, counted in one process:",
        "",
        *table(
            ("case", "steps", "messages", "bytes"),
            [
                (
                    counts.case,
                    f"{counts.steps:.2f}",
                    f"{counts.messages:.2f}",
                    f"{counts.num_bytes:.0f}",
                )
                for counts in run.wire
            ],
        ),
    ]
    return "\n".join(lines)


_COMPARED = ("tokens_per_s", "first_ms", "gap_ms")


def as_json(runs: Sequence[Run]) -> str:
    """Every figure of every round, and its median and range."""
    content = [
        asdict(run)
        | {
            "summary": {
                result.case: {
                    column.name: asdict(Spread.of(result.values(column.name)))
                    for column in fields(Figures)
                }
                for result in run.results
            }
        }
        for run in runs
    ]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _ratios(run: Run, result: Result, rival: str, name: str) -> str:
    other = next(other for other in run.results if other.case == rival)
    pairs = zip(result.values(name), other.values(name), strict=True)
    return _spread([own / theirs for own, theirs in pairs])


def _spread(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})"


def _middle(values: Sequence[float]) -> str:
    return number(Spread.of(values).median)
