"""`cuvee merge RECIPE OUT`: several checkpoints become one, with a bar while that takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from cluster.cli.output import human_bytes, print_failure, print_json, print_line
from cluster.errors import CuveeError
from cluster.spec import load_recipe

if TYPE_CHECKING:
    from cluster.merging.merge import Merged, Watch


def merge(recipe: Path, out: Path, as_json: bool, console: Console) -> int:
    """Merge into a new folder; 0 when that was done."""
    from cluster.merging.merge import merge

    begin_s = time.monotonic()
    try:
        with merging(f"merging into {out.name}") as watch:
            merged = merge(load_recipe(recipe), out, download=True, watch=watch)
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    took_s = time.monotonic() - begin_s
    if as_json:
        print_json(console, {"ok": True, **_as_mapping(merged, took_s)})
    else:
        _print(console, merged, took_s)
    return 0


@contextmanager
def merging(what: str) -> Iterator[Watch]:
    """A bar with rate and time left, on stderr where that is a terminal."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print(console: Console, merged: Merged, took_s: float) -> None:
    rate = (merged.num_bytes_read + merged.num_bytes_written) / took_s
    words = (
        f"{merged.folder}: {human_bytes(merged.num_bytes_written)} from "
        f"{human_bytes(merged.num_bytes_read)} in {took_s:.1f} s, {human_bytes(int(rate))}/s"
    )
    print_line(console, Text.assemble(("✓ ", "bold green"), words))
    if merged.relation is not None:
        for model, cosine in merged.relation.weights.items():
            print_line(
                console,
                f"  cosine of weights  {cosine:.3f}  {model} to {merged.relation.reference}",
            )
        for (one, other), cosine in merged.relation.changes.items():
            print_line(console, f"  cosine of changes  {cosine:.3f}  {one} and {other}")
    for warning in merged.warnings:
        print_line(console, Text.assemble(("! ", "bold yellow"), warning))
    print_line(console, f"  In a blend file: model: {merged.folder.absolute()}")


def _as_mapping(merged: Merged, took_s: float) -> dict[str, Any]:
    relation = merged.relation
    return {
        "folder": str(merged.folder.absolute()),
        "num_bytes_read": merged.num_bytes_read,
        "num_bytes_written": merged.num_bytes_written,
        "took_s": round(took_s, 3),
        "warnings": list(merged.warnings),
        "relation": None
        if relation is None
        else {
            "reference": relation.reference,
            "weights": relation.weights,
            "changes": [
                {"models": list(pair), "cosine": cosine}
                for pair, cosine in relation.changes.items()
            ],
        },
    }
