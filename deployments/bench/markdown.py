"""Tables, and pages with a part that a command writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def put_fragment(page: Path, name: str, content: str) -> None:
    """Replace what is between the page's markers of that name; or append both."""
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    text = page.read_text() if page.exists() else ""
    if begin not in text:
        text += f"\n{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    page.write_text(f"{head}{begin}\n{content}\n{end}{tail}")


def number(value: float) -> str:
    """Three digits that say something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines, aligned for those who read the source."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in (head, rule, *rows)
    ]
