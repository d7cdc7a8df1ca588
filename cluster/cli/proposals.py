"""The replies that an answer was chosen or written from, for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from cluster.cli.output import print_line
from cluster.cli.paint import Voices
from cuvee.v1 import generation_pb2 as pb

_MAX_SHOWN = 70
_STATES = {pb.PROPOSAL_STATE_LATE: "late", pb.PROPOSAL_STATE_FAILED: "failed"}


@dataclass(frozen=True, slots=True)
class Row:
    """One proposal in words."""

    member: str
    round: str  # empty where there is only one
    mark: str  # whether it was chosen, late or failed
    score: str
    answer: str
    text: str

    @property
    def short(self) -> str:
        """Its text in half a line."""
        words = " ".join(self.text.split())
        return words if len(words) <= _MAX_SHOWN else words[: _MAX_SHOWN - 1] + "…"


def rows_of(proposals: Iterable[pb.Proposal]) -> list[Row]:
    """All proposals, as they were asked for."""
    given = list(proposals)
    has_rounds = any(proposal.layer > 1 for proposal in given)
    return [
        Row(
            member=p.member,
            round=f"round {p.layer}" if has_rounds else "",
            mark=_STATES.get(p.state, "chosen" if p.chosen else ""),
            score=f"{p.score:.3g}" if p.HasField("score") else "",
            answer=p.answer,
            text=p.error or p.text,
        )
        for p in given
    ]


def print_proposals(console: Console, voices: Voices, proposals: Iterable[pb.Proposal]) -> None:
    """A line per proposal: who, how good, and how it begins."""
    rows = rows_of(proposals)
    if not rows:
        return
    cells = [(r.round, r.mark, r.score, repr(r.answer) if r.answer else "") for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    width = max(len(row.member) for row in rows)
    for row, (turn, mark, score, answer) in zip(rows, cells, strict=True):
        line = Text.assemble(
            f"  {voices.tag(row.member)} ", (f"{row.member:<{width}}", voices.style(row.member))
        )
        parts = zip((turn, mark, score.rjust(widths[2]), answer), widths, strict=True)
        for words, size in parts:
            if size:
                line.append(f"  {words:<{size}}", "bold" if words == mark == "chosen" else "")
        line.append(f"  {row.short}", "dim")
        print_line(console, line)
