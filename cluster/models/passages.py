"""Texts cut into passages, each to be predicted from what comes before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a file, and what comes before it."""

    before: str
    text: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


def cut_passages(file: Path, context: int, passage: int, limit: int) -> Iterator[Passage]:
    """Passages one after another, each with the characters before it; a short last one counts.

    Raises InvalidRequest for a file that cannot be read, or is shorter than a context.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("TEXT_UNREADABLE", f"{file}: {error}", field="files") from None
    if len(text) <= context:
        message = f"{file} has {len(text)} characters; expected more than the context, {context}"
        raise InvalidRequest("TEXT_TOO_SHORT", message, field="files")
    for begin in list(range(context, len(text), passage))[:limit]:
        yield Passage(text[begin - context : begin], text[begin : begin + passage])
