"""Several measures over one time axis, as one self-contained picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from cluster.cli.paint import PALETTE

Points = Sequence[tuple[float, float]]  # (time in seconds, value)

_WIDTH = 860  # these are pixels
_LEFT, _RIGHT = 70, 840
_PANEL_HEIGHT = 110
_PANEL_STEP = 165
_NUM_TICKS = 4
_NUM_TIMES = 10


@dataclass(frozen=True, slots=True)
class Panel:
    """One measure with its unit, as one line or several."""

    name: str
    lines: Mapping[str, Points]  # a single one may have an empty name
    is_stepped: bool = False  # the value holds until the next point


def write_timeline(file: Path, title: str, panels: Sequence[Panel]) -> None:
    """One picture, panels one below the other."""
    file.write_text(make_timeline(title, panels), encoding="utf-8")


def make_timeline(title: str, panels: Sequence[Panel]) -> str:
    """The picture; a line's name has one colour in all panels."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    points = [point for panel in panels for line in panel.lines.values() for point in line]
    end_s = max((time_s for time_s, _ in points), default=1.0)
    step_s = _round_step(end_s / _NUM_TIMES)
    times = [number * step_s for number in range(int(end_s / step_s) + 1)]
    template = (Path(__file__).parent / "timeline.svg").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        width=_WIDTH,
        height=60 + _PANEL_STEP * len(panels) + 20,
        left=_LEFT,
        right=_RIGHT,
        panels=[
            _drawn(panel, 80 + _PANEL_STEP * number, end_s, colours)
            for number, panel in enumerate(panels)
        ],
        times=[{"x": _x(time_s, end_s), "words": f"{time_s:g} s"} for time_s in times],
    )


def _drawn(panel: Panel, top: int, end_s: float, colours: Mapping[str, str]) -> dict[str, object]:
    most = max((value for line in panel.lines.values() for _, value in line), default=0.0)
    step = _round_step(max(most, 1e-9) / _NUM_TICKS)
    highest = step * max(1, math.ceil(most / step - 1e-9))

    def y(value: float) -> float:
        return round(top + _PANEL_HEIGHT * (1 - value / highest), 1)

    ticks = [number * step for number in range(round(highest / step) + 1)]
    return {
        "name": panel.name,
        "top": top,
        "ticks": [{"y": y(tick), "words": f"{tick:g}"} for tick in ticks],
        "lines": [
            {
                "name": name,
                "colour": colours[name],
                "points": " ".join(
                    f"{_x(time_s, end_s)},{y(value)}"
                    for time_s, value in (_stepped(line) if panel.is_stepped else line)
                ),
            }
            for name, line in panel.lines.items()
        ],
    }


def _stepped(line: Points) -> Points:
    """With a corner where the value changes."""
    corners: list[tuple[float, float]] = []
    for time_s, value in line:
        if corners:
            corners.append((time_s, corners[-1][1]))
        corners.append((time_s, value))
    return corners


def _x(time_s: float, end_s: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * time_s / end_s, 1)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, … and so on below."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step - 1e-9)
