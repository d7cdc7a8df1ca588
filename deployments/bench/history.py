"""Runs of the past, from the JSON that they left: how each ratio went, with machine and commit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cli.paint import PALETTE
from cluster.errors import InvalidRequest
from deployments.bench.figures import Spread
from deployments.bench.markdown import number, table
from deployments.bench.picture import Bar, Panel, draw
from deployments.bench.report import FORMAT

_MET, _SHORT, _FREE = PALETTE[2], PALETTE[4], PALETTE[1]


@dataclass(frozen=True, slots=True)
class Entry:
    """One ratio of one run."""

    ratio: str
    measured: Spread
    wanted: float | None
    is_most: bool
    is_met: bool | None


@dataclass(frozen=True, slots=True)
class Past:
    """One run."""

    name: str  # of the blend file
    way: str
    time: str
    commit: str
    processor: str
    load_before: float
    entries: Sequence[Entry]

    @property
    def label(self) -> str:
        """Which run it is, in few words."""
        return f"{self.time[:16].replace('T', ' ')}, {self.name} {self.way}, {self.commit}"


def read_history(folder: Path) -> list[Past]:
    """All runs of a folder, oldest first; raises InvalidRequest for a file that is no run."""
    found = [_read(file) for file in sorted(folder.glob("*.json"))]
    if not found:
        words = f"got {folder}; expected a folder with JSON of `cuvee bench --json`"
        raise InvalidRequest("NO_HISTORY", words, field="history")
    return sorted(found, key=lambda past: past.time)


def _read(file: Path) -> Past:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}; expected {FORMAT}")
        machine = content["machine"]
        return Past(
            name=content["name"],
            way=content["way"],
            time=machine["time"],
            commit=machine["commit"],
            processor=f"{machine['processor']}, {machine['num_cores']} cores",
            load_before=machine["load_before"],
            entries=[
                Entry(
                    target["name"],
                    Spread(**target["measured"]),
                    target["wanted"],
                    target["is_most"],
                    target["is_met"],
                )
                for target in content["targets"]
            ],
        )
    except (ValueError, KeyError, TypeError) as error:
        words = f"{file}: no run of `cuvee bench --json`: {type(error).__name__}: {error}"
        raise InvalidRequest("NOT_A_RUN", words, field="history") from None


def as_markdown(runs: Sequence[Past]) -> str:
    """The runs, then a row for each of their ratios by run."""
    lines = table(
        ("run", "machine", "load before"),
        [(past.label, past.processor, f"{past.load_before:g}") for past in runs],
    )
    rows = [
        (entry.ratio, _wanted(entry), past.label, _words(entry))
        for entry_name in _ratios(runs)
        for past in runs
        for entry in past.entries
        if entry.ratio == entry_name
    ]
    if rows:
        lines += ["", *table(("ratio", "wanted", "run", "measured"), rows)]
    return "\n".join(lines)


def draw_history(runs: Sequence[Past]) -> str:
    """A panel for each ratio, with a bar for each run."""
    panels = []
    for ratio in _ratios(runs):
        bars, mark = [], None
        for past in runs:
            for entry in past.entries:
                if entry.ratio == ratio:
                    colour = {True: _MET, False: _SHORT, None: _FREE}[entry.is_met]
                    bars.append(Bar(past.label, entry.measured, colour))
                    mark, note = entry.wanted, _note(entry)
        panels.append([Panel(ratio, note, bars, mark)])
    return draw("cuvee bench over time", "medians of each run, lines show its rounds", panels)


def show_history(folder: Path, picture: Path | None) -> None:
    """The table on stdout, and a picture where it is wanted."""
    import typer

    from cluster.cli.call import print_error

    try:
        runs = read_history(folder)
    except InvalidRequest as error:
        print_error(error)
        raise typer.Exit(1) from None
    print(as_markdown(runs))
    if picture is not None:
        picture.write_text(draw_history(runs), encoding="utf-8")


def _ratios(runs: Sequence[Past]) -> list[str]:
    return list(dict.fromkeys(entry.ratio for past in runs for entry in past.entries))


def _note(entry: Entry) -> str:
    if entry.wanted is None:
        return ""
    return f"{'at most' if entry.is_most else 'at least'} {entry.wanted:g} is wanted"


def _wanted(entry: Entry) -> str:
    return "" if entry.wanted is None else f"{'≤' if entry.is_most else '≥'} {entry.wanted:g}"


def _words(entry: Entry) -> str:
    low, middle, high = (
        number(v) for v in (entry.measured.low, entry.measured.median, entry.measured.high)
    )
    return f"{middle} ({low}–{high})"
