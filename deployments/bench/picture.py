"""A run, or many runs, as one self-contained picture: bars with their ranges; no script.

Nothing is told by colour alone: every bar has its name and its numbers beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from cluster.cli.paint import PALETTE
from deployments.bench.cases import ANEW, Key
from deployments.bench.figures import Spread
from deployments.bench.markdown import number
from deployments.bench.races import Rival
from deployments.bench.workload import Kind

if TYPE_CHECKING:
    from deployments.bench.report import Run
    from deployments.bench.rounds import Result

_MEMBER, _BLEND, _RIVAL, _SHORT = PALETTE[1], PALETTE[2], "#9a9a9a", PALETTE[4]

_WIDTH = 1080  # these are pixels
_MARGIN = 20
_CHARACTER = 7.2
_BAR_STEP = 24
_PANEL_STEP = 58
_TOP = 64
_WORDS_WIDTH = 60  # after a bar: its numbers
_AIM_WIDTH = 130  # beside the bars, where a line crosses them


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure: its median is the bar, its range a line over it."""

    name: str
    spread: Spread
    colour: str
    words: str = ""  # instead of the median


@dataclass(frozen=True, slots=True)
class Panel:
    """Figures of one kind on one scale from 0."""

    name: str
    note: str
    bars: Sequence[Bar]
    mark: float | None = None  # a line across all bars, where they should reach
    unit: str = ""


def draw(title: str, subtitle: str, rows: Sequence[Sequence[Panel]]) -> str:
    """The picture as SVG, a row of panels below the other; panels without bars are left out."""
    from jinja2 import Environment

    top, drawn = _TOP, []
    for row in rows:
        panels = [panel for panel in row if panel.bars]
        if not panels:
            continue
        top += _PANEL_STEP
        width = (_WIDTH - _MARGIN) // len(panels)
        drawn += [
            _placed(panel, top, _MARGIN + width * place, width)
            for place, panel in enumerate(panels)
        ]
        top += _BAR_STEP * max(len(panel.bars) for panel in panels)
    template = (files("deployments.bench") / "picture.svg").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title, subtitle=subtitle, width=_WIDTH, height=top + 36, panels=drawn
    )


def _placed(panel: Panel, top: int, x: int, width: int) -> dict[str, object]:
    left = x + 10 + round(_CHARACTER * max(len(bar.name) for bar in panel.bars))
    has_mark = panel.mark is not None
    longest = x + width - left - (_AIM_WIDTH if has_mark else _WORDS_WIDTH) - _MARGIN
    most = max(*(bar.spread.high for bar in panel.bars), panel.mark or 0.0, 1e-9)

    def end(value: float) -> float:
        return round(left + longest * value / most, 1)

    return {
        "name": panel.name,
        "note": panel.note,
        "x": x,
        "y": top,
        "left": left,
        "end": top + 10 + _BAR_STEP * len(panel.bars),
        "mark": None if panel.mark is None else end(panel.mark),
        "bars": [
            {
                "name": bar.name,
                "y": top + 12 + _BAR_STEP * row,
                "end": end(bar.spread.median),
                "low": end(bar.spread.low),
                "high": end(bar.spread.high),
                "has_range": bar.spread.low != bar.spread.high,
                "colour": bar.colour,
                "words_x": left + longest + 8 if has_mark else end(bar.spread.high) + 8,
                "words": bar.words or f"{number(bar.spread.median)}{panel.unit}",
            }
            for row, bar in enumerate(panel.bars)
        ],
    }


def draw_run(run: Run) -> str:
    """Speed by load; Cuvée among its rivals; and what was reached of what is wanted."""
    title = f"cuvee bench: {run.name}, Cuvée {run.way}"
    subtitle = (
        f"{run.machine.processor}, {run.machine.num_cores} cores, {run.machine.time[:10]}, "
        f"commit {run.machine.commit}, load before {run.machine.load_before:g}; "
        f"medians of {run.settings.num_rounds} rounds, lines show lowest and highest"
    )
    return draw(title, subtitle, [*_loads(run), *_contests(run), [_reached(run)]])


def _loads(run: Run) -> Iterator[list[Panel]]:
    """A row for each number of streams: how much, and how long between tokens."""
    for streams in run.settings.streams:
        words = f"{streams} stream{'' if streams == 1 else 's'}"
        yield [
            _load(run, streams, "tokens_per_s", words, "tokens/s; more is better"),
            _load(run, streams, "gap_mean_ms", words, "between tokens; less is better", " ms"),
        ]


def _load(run: Run, streams: int, figure: str, name: str, note: str, unit: str = "") -> Panel:
    found = _by_key(run)
    bars = [
        Bar(
            subject.name + (" alone" if subject.kind is Kind.MEMBER else ""),
            Spread.of(result.values(figure)),
            _MEMBER if subject.kind is Kind.MEMBER else _BLEND,
        )
        for subject in run.subjects
        if (result := found.get(Key("closed", subject.name, streams)))
    ]
    return Panel(name, note, bars, unit=unit)


def _contests(run: Run) -> Iterator[list[Panel]]:
    """One stream, among those who do the same without Cuvée, or with it but naively."""
    found = _by_key(run)
    raced = (Rival.MIXTURE, Rival.AVERAGE, Rival.OWN_AVERAGE, Rival.OWN_PARALLEL)
    for subject in run.subjects:
        rows = {
            f"Cuvée {subject.name}": found.get(Key("closed", subject.name, 1)),
            **{rival.value: found.get(Key(rival.value, subject.name)) for rival in raced},
            ANEW: found.get(Key(ANEW, subject.name)),
        }
        bars = [
            Bar(
                name,
                Spread.of(result.values("tokens_per_s")),
                _BLEND if name.startswith("Cuvée") else _RIVAL,
            )
            for name, result in rows.items()
            if result
        ]
        if len(bars) > 1:
            members = len(subject.weights)
            note = f"{members} members, 1 stream: tokens per second; more is better"
            yield [Panel(f"{subject.name} and its rivals", note, bars)]


def _reached(run: Run) -> Panel:
    bars = []
    for target in run.targets:
        if target.wanted is None:
            continue
        ends = [target.measured.low, target.measured.median, target.measured.high]
        shares = sorted(_share(target.wanted, end, is_most=target.is_most) for end in ends)
        sign = "≤" if target.is_most else "≥"
        words = f"{number(target.measured.median)} for {sign} {target.wanted:g}"
        spread = Spread(shares[1], shares[0], shares[2])
        bars.append(Bar(target.name, spread, _BLEND if target.is_met else _SHORT, words))
    note = "share of each aim; a bar that ends left of the line falls short"
    return Panel("What was reached", note, bars, mark=1.0)


def _share(wanted: float, measured: float, *, is_most: bool) -> float:
    if is_most:
        return wanted / measured if measured else 0.0
    return measured / wanted


def _by_key(run: Run) -> dict[Key, Result]:
    return {result.key: result for result in run.measured.results}
