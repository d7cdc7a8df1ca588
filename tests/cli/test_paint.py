"""Colours, marks and bars; what a terminal gets and what a pipe gets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.cli.paint import PALETTE, PALETTE_OF_16, Painter, Voices, bar, print_legend
from cuvee.v1 import generation_pb2 as pb


class Terminal(io.StringIO):
    """A file that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal with all colours, unless a test takes them away."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    return Terminal()


def paint(out: io.StringIO, *, marks: bool = False) -> str:
    painter = Painter(Voices(["austen", "kjv"]), marks=marks, out=out)
    painter.paint([("austen", "It is"), ("kjv", " a truth"), ("kjv", ","), ("austen", " that")])
    painter.end_line()
    return out.getvalue()


def test_a_pipe_gets_the_text_alone() -> None:
    assert paint(io.StringIO()) == "It is a truth, that\n"


def test_a_pipe_gets_marks_when_asked() -> None:
    assert paint(io.StringIO(), marks=True) == "⟨a⟩It is⟨k⟩ a truth,⟨a⟩ that\n"


def test_a_terminal_gets_a_colour_per_member_and_no_marks(terminal: Terminal) -> None:
    painted = paint(terminal)
    assert "\x1b[38;2;230;159;0mIt is\x1b[0m" in painted
    assert "\x1b[38;2;86;180;233m a truth\x1b[0m" in painted
    assert "⟨" not in painted


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colour_gets_marks(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    painted = paint(terminal)
    assert painted == "⟨a⟩It is⟨k⟩ a truth,⟨a⟩ that\n"


def test_control_characters_of_a_model_do_not_reach_a_terminal(terminal: Terminal) -> None:
    painter = Painter(Voices(["ann"]), out=terminal)
    painter.paint([("ann", "a\x1b]0;owned\x07\x9b2J\rb")])
    assert "a␛]0;owned␇\N{REPLACEMENT CHARACTER}2J␍b" in terminal.getvalue()


def test_a_prompt_leads_only_once_something_is_said() -> None:
    out = io.StringIO()
    painter = Painter(Voices(["ann"]), out=out)
    painter.lead("It is")
    painter.paint([])
    assert out.getvalue() == ""
    painter.paint([("ann", " so"), ("ann", ".")])
    assert out.getvalue() == "It is so."


def test_the_line_is_ended_once() -> None:
    out = io.StringIO()
    painter = Painter(Voices(["ann"]), out=out)
    painter.paint([("ann", "so\n")])
    painter.end_line()
    painter.end_line()
    assert out.getvalue() == "so\n"


def test_tags_are_the_shortest_that_tell_members_apart() -> None:
    voices = Voices(["austen", "bierce", "bytes", "b"])
    assert [voices.tag(name) for name in voices.names] == ["⟨a⟩", "⟨bi⟩", "⟨by⟩", "⟨b⟩"]


def test_each_member_of_a_usual_blend_has_its_own_colour() -> None:
    assert len(set(PALETTE)) == len(set(PALETTE_OF_16)) == len(PALETTE) == len(PALETTE_OF_16)
    voices = Voices(f"m{index}" for index in range(len(PALETTE)))
    assert len({voices.style(name) for name in voices.names}) == len(PALETTE)


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, "    "), (1, "████"), (0.5, "██  "), (0.53125, "██▏ "), (2, "████")]
)
def test_a_bar_is_exact_to_an_eighth_and_keeps_its_width(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


def test_the_legend_says_tag_name_share_and_counts() -> None:
    out = io.StringIO()
    members = [
        pb.MemberUsage(member="austen", drawn_tokens=3, processed_tokens=12, forward_passes=5),
        pb.MemberUsage(member="kjv", drawn_tokens=1, processed_tokens=9, forward_passes=2),
    ]
    print_legend(Console(file=out, width=100), Voices(["austen", "kjv"]), pb.Usage(members=members))
    first, second = out.getvalue().splitlines()
    assert " ".join(first.split()) == f"⟨a⟩ austen {'█' * 15} 75% 3 drawn 12 processed 5 passes"
    assert " ".join(second.split()) == f"⟨k⟩ kjv {'█' * 5} 25% 1 drawn 9 processed 2 passes"
    assert first.index("drawn") == second.index("drawn")


def test_the_legend_of_an_empty_reply_shows_no_share() -> None:
    out = io.StringIO()
    usage = pb.Usage(members=[pb.MemberUsage(member="ann")])
    print_legend(Console(file=out, width=100), Voices(["ann"]), usage)
    assert " 0% " in out.getvalue()
