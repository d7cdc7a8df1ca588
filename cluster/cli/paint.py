"""Which member said what, made visible: a colour each, a mark each, shares and a legend.

Nothing is told by colour alone: a terminal without colour gets marks in the text, and the legend
names every tag. Into a pipe goes the plain text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from cluster.cli.output import print_line
from cluster.cli.runs import Run
from cuvee.v1 import generation_pb2 as pb

# Okabe and Ito's colour-blind-safe set, those that read on dark and on light ground first; and what
# comes nearest where a terminal has 16 colours, since rounding would make two of them one.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
PALETTE_OF_16 = ("yellow", "bright_cyan", "green", "magenta", "red", "blue", "bright_yellow")
BAR_WIDTH = 20

_EIGHTHS = " ▏▎▍▌▋▊▉"
# Control characters may move the cursor or retitle the window; a model must not.
_HARMLESS = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)}
_HARMLESS |= dict.fromkeys(range(127, 160), "�")


class Voices:
    """A colour and a short tag for each member, in the blend's order."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        has_few = Console().color_system == "standard"
        self._palette = PALETTE_OF_16 if has_few else PALETTE

    def style(self, name: str) -> str:
        """The member's colour."""
        if name not in self.names:
            return ""
        return self._palette[self.names.index(name) % len(self._palette)]

    def tag(self, name: str) -> str:
        """⟨k⟩: the shortest beginning of the name that no other member has."""
        others = [other for other in self.names if other != name]
        for length in range(1, len(name)):
            if not any(other.startswith(name[:length]) for other in others):
                return f"⟨{name[:length]}⟩"
        return f"⟨{name}⟩"


class Painter:
    """Writes a reply as it comes: coloured, marked, or plain, as the output allows."""

    def __init__(self, voices: Voices, *, marks: bool = False, out: TextIO | None = None) -> None:
        self._voices = voices
        self._out = out or sys.stdout
        self._console = Console(file=self._out, highlight=False)
        has_colour = self._console.color_system is not None and not self._console.no_color
        self.is_coloured = self._console.is_terminal and has_colour
        self.is_marked = marks or (self._console.is_terminal and not self.is_coloured)
        self._speaker = ""
        self._lead = ""
        self._ends_line = True

    def paint(self, runs: Iterable[Run]) -> None:
        """Write what members said."""
        for member, text in runs:
            if self._lead:
                self._write(self._lead, "dim")
                self._lead = ""
            if self.is_marked and member != self._speaker:
                self._write(self._voices.tag(member), "")
            self._speaker = member
            self._write(text, self._voices.style(member))
            self._ends_line = text.endswith("\n")

    def lead(self, prompt: str) -> None:
        """Before the first word, write what the reply continues: both read as one text."""
        self._lead = prompt

    def end_line(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if not self._ends_line:
            self._write("\n", "")
        self._ends_line, self._speaker = True, ""

    def _write(self, text: str, style: str) -> None:
        if not self._console.is_terminal:
            self._out.write(text)
            self._out.flush()
            return
        self._console.out(text.translate(_HARMLESS), style=style or None, end="", highlight=False)


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A share as a bar, exact to an eighth of a character, always of the same width."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _draft_words(member: pb.MemberUsage) -> str:
    if not member.drafted_tokens:
        return ""
    return f"{member.accepted_tokens} of {member.drafted_tokens} drafted stood"


def print_legend(console: Console, voices: Voices, usage: pb.Usage) -> None:
    """Who drew how much of a reply, and what that took."""
    members = list(usage.members)
    rows = [
        (
            f"{share(member, members):>4.0%}",
            f"{member.drawn_tokens} drawn",
            f"{member.processed_tokens} processed",
            f"{member.forward_passes} passes",
            _draft_words(member),
        )
        for member in members
    ]
    heads = [(voices.tag(member.member), member.member) for member in members]
    head_widths = _widths(heads)
    widths = _widths(rows)
    for member, head, row in zip(members, heads, rows, strict=True):
        style = voices.style(member.member)
        tag, name = (cell.ljust(w) for cell, w in zip(head, head_widths, strict=True))
        cells = "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        line = Text.assemble(f"  {tag} ", (name, style), "  ")
        line.append(bar(share(member, members)), style).append(f" {cells}")
        print_line(console, line)


def shares_line(voices: Voices, usage: pb.Usage) -> Text:
    """The legend in half a line, for chats."""
    members = list(usage.members)
    line = Text()
    for member in members:
        line.append(f"{voices.tag(member.member)} ")
        line.append(member.member, voices.style(member.member))
        line.append(f" {share(member, members):.0%}  ")
    return line


def share(member: pb.MemberUsage, members: Sequence[pb.MemberUsage]) -> float:
    """The member's part of the tokens drawn by all."""
    total = sum(one.drawn_tokens for one in members)
    return member.drawn_tokens / total if total else 0.0


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(*rows, strict=True)]
