"""`cuvee merge RECIPE OUT`, `cuvee merge search` and `cuvee eval rewards`: is merging worth it?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
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

from cluster.cli.output import (
    human_bytes,
    print_failure,
    print_json,
    print_line,
    print_table,
    working,
)
from cluster.errors import CuveeError
from cluster.spec import RecipeSpec, load_recipe

if TYPE_CHECKING:
    from cluster.merging.merge import Merged, Watch
    from cluster.rankers.agreement import Judged

_SPLITS = ("tuned on", "held out")


def merge(recipe: Path, out: Path, compare: Sequence[Path], as_json: bool, console: Console) -> int:
    """Merge into a new folder, and compare it with what it is made of; 0 when that was done."""
    from cluster.merging.merge import merge

    begin_s = time.monotonic()
    try:
        spec = load_recipe(recipe)
        with merging(f"merging into {out.name}") as watch:
            merged = merge(spec, out, download=True, watch=watch)
        took_s = time.monotonic() - begin_s
        compared = _compared(spec, out, compare) if compare else None
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    if as_json:
        rows = {} if compared is None else {"compared": compared.as_data()}
        print_json(console, {"ok": True, **_as_mapping(merged, took_s), **rows})
        return 0
    _print(console, merged, took_s)
    if compared is not None:
        print_line(console)
        print_table(console, compared.columns, compared.rows, right=compared.columns[1:])
        print_line(console, compared.note)
    return 0


def search(
    recipe: Path,
    files: Sequence[Path],
    out: Path | None,
    max_evaluations: int,
    limit: int,
    as_json: bool,
    console: Console,
) -> int:
    """Tune the recipe's weights on text, say what that gained, and write the best recipe."""
    from cluster.merging.bits import read_passages
    from cluster.merging.search import search

    try:
        with working("reading the models") as progress:
            found = search(
                load_recipe(recipe),
                read_passages(files, limit),
                max_evaluations=max_evaluations,
                watch=lambda number, best: progress(
                    f"{number} of {max_evaluations} evaluations, best {best:.4f} nats per token"
                ),
            )
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    if out is not None:
        out.write_text(yaml.safe_dump(found.recipe.to_mapping(), sort_keys=False))
    if as_json:
        told: dict[str, Any] = {
            "numbers": found.numbers,
            "start": asdict(found.start),
            "best": asdict(found.best),
        }
        told["num_evaluations"] = found.num_evaluations
        print_json(console, {"ok": True, **told, "recipe": found.recipe.to_mapping()})
        return 0
    rows = [
        (name, f"{split.tuned:.4f}", f"{split.held_out:.4f}")
        for name, split in (("as it was", found.start), ("tuned", found.best))
    ]
    print_table(console, ("bits per byte", "tuned on", "held out"), rows, right=_SPLITS)
    words = ", ".join(f"{number:.3f}" for number in found.numbers)
    print_line(console, f"{found.num_evaluations} evaluations; numbers: {words}")
    if found.best.held_out >= found.start.held_out:
        print_line(console, "! no better on what it was not tuned on: keep the recipe as it was")
    if out is not None:
        print_line(console, f"written to {out}")
    return 0


def rewards(
    models: Sequence[str], file: Path, noise: float, seed: int, as_json: bool, console: Console
) -> int:
    """Reward models side by side: accuracy on pairs, and agreement under noise."""
    from cluster.models.resolve import resolve
    from cluster.rankers.agreement import judge, read_pairs

    try:
        pairs = read_pairs(file)
        with working("reading the models") as progress:
            judged = {}
            for model in models:
                progress(f"asking {model}")
                folder = resolve(model, download=False)
                judged[model] = judge(folder, pairs, noise=noise, seed=seed)
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    table = _of_rewards(judged)
    if as_json:
        print_json(console, {"ok": True, "num_pairs": len(pairs), "rewards": table.as_data()})
        return 0
    print_table(console, table.columns, table.rows, right=table.columns[1:])
    print_line(console, table.note)
    return 0


@dataclass(frozen=True, slots=True)
class _Table:
    """Ways side by side: the same for people and for machines."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str

    def as_data(self) -> list[dict[str, str | float]]:
        return [
            {
                column.replace(" ", "_"): _number(cell)
                for column, cell in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]


def _compared(recipe: RecipeSpec, merged: Path, files: Sequence[Path]) -> _Table:
    from cluster.merging.compare import compare_rewards, compare_texts
    from cluster.merging.lora import is_classifier

    with working("comparing"):
        if len(files) == 1 and is_classifier(merged):
            return _of_rewards(compare_rewards(recipe, merged, files[0]))
        rows = compare_texts(recipe, merged, files)
    cells = [(row.name, row.kind, f"{row.bits_per_byte:.4f}") for row in rows]
    return _Table(("name", "kind", "bits per byte"), cells, "lower is better; blends weigh alike")


def _of_rewards(judged: Mapping[str, Judged]) -> _Table:
    rows = [
        (name, f"{one.accuracy:.4f}", f"{one.noised_accuracy:.4f}", f"{one.agreement:.4f}")
        for name, one in judged.items()
    ]
    note = "shares of pairs; agreement: the same order with and without noise in the replies"
    return _Table(("reward model", "accuracy", "noised accuracy", "agreement"), rows, note)


def _number(cell: str) -> str | float:
    try:
        return float(cell)
    except ValueError:
        return cell


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
