"""How the command line speaks: people get tables and sentences, machines get JSON.

What a command was asked for goes to stdout; what only passes the time goes to stderr, and only on a
terminal. Nothing is told by colour alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from cluster.errors import CuveeError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def human_bytes(num_bytes: int) -> str:
    """Three figures and a unit: 8.24 MiB, 1.4 GiB."""
    size, unit = float(num_bytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}" if size < 1000 else f"{size:.0f} {_UNITS[unit]}"


def human_count(number: int) -> str:
    """Three figures: 950, 2.16M, 134M, 7.24B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def plain_number(number: float) -> str:
    """0.3, 2, –: a dash for nothing, since a column of zeros hides the rest."""
    return f"{number:g}" if number else "–"


def print_json(console: Console, content: Mapping[str, Any]) -> None:
    console.print(json.dumps(content, indent=2), markup=False, highlight=False, soft_wrap=True)


def print_line(console: Console, text: RenderableType = "") -> None:
    """One line, wrapped by the terminal and never cut when it goes into a file."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_failure(console: Console, error: CuveeError, *, as_json: bool) -> int:
    """Say what went wrong; the exit code of a command that failed."""
    if as_json:
        print_json(console, {"ok": False, "reason": error.reason, "error": error.message})
    else:
        print_line(console, Text.assemble(("error: ", "bold red"), error.message))
    return 1


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
) -> None:
    """A table, and an empty line after it."""
    for line in table_lines(columns, rows, right=right):
        print_line(console, line)
    print_line(console)


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()
) -> Iterator[Text]:
    """Columns as wide as they need, those in `right` to the right, the first one bold.

    Headings are in capitals, so that they stand out without colour; nothing is ever cut, so that
    what is piped into a file or a search is whole.
    """
    headings = [column.upper() for column in columns]
    widths = [max(map(cell_len, cells)) for cells in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        line = Text()
        for column, cell, width in zip(columns, row, widths, strict=True):
            style = "dim" if row is headings else "bold" if column is columns[0] else ""
            gap = " " * (width - cell_len(cell))
            line.append(gap + cell if column in right else cell + gap, style).append("  ")
        line.rstrip()
        yield line


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on, on stderr where that is a terminal; gives a way to change it."""
    console = Console(file=sys.stderr)  # this very stream, whatever stderr is redirected to later
    with console.status(what) as status:
        yield lambda words: status.update(words)
