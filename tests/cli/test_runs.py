"""Who is shown to have said what."""

from __future__ import annotations

from cluster.cli.runs import Run, Runs


def align(*pieces: tuple[str, list[tuple[str, bytes]]]) -> list[Run]:
    """All runs of a stream of text and tokens, pieces kept apart."""
    runs = Runs()
    found = [run for text, tokens in pieces for run in runs.push(text, tokens)]
    return [*found, *runs.finish()]


def test_neighbours_by_one_member_are_joined() -> None:
    assert align(("abc", [("ann", b"a"), ("ann", b"b"), ("bob", b"c")])) == [
        ("ann", "ab"),
        ("bob", "c"),
    ]


def test_a_character_goes_to_the_member_that_completes_it() -> None:
    pieces = [("", [("ann", b"\xc3")]), ("é", [("bob", b"\xa9")]), ("!", [("ann", b"!")])]
    assert align(*pieces) == [("bob", "é"), ("ann", "!")]


def test_text_that_runs_ahead_of_its_token_waits_for_it() -> None:
    runs = Runs()
    assert runs.push("he", []) == []
    assert runs.push("llo", [("ann", b"hello")]) == [("ann", "hello")]


def test_a_token_whose_text_is_held_back_is_not_shown() -> None:
    runs = Runs()
    assert runs.push("ab", [("ann", b"abST")]) == [("ann", "ab")]
    assert runs.finish() == []


def test_a_cut_character_at_the_end_goes_to_who_began_it() -> None:
    pieces = [("a", [("ann", b"a")]), ("", [("bob", b"\xe2\x82")]), ("\ufffd", [])]
    assert align(*pieces) == [("ann", "a"), ("bob", "\ufffd")]


def test_text_without_tokens_is_nobodys() -> None:
    assert align(("plain", [])) == [("", "plain")]
