import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from cluster.text.stops import StopMatcher

letters = st.text("ab\n", max_size=12)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Grow the text by one character at a time until it ends in a stop string."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(st.lists(letters, max_size=8), stop_lists)
def test_any_chunking_gives_what_a_naive_search_gives(chunks: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    released, matched = "", None
    for chunk in chunks:
        safe, matched = matcher.push(chunk)
        released += safe
    assert (released + matcher.flush(), matched) == naive("".join(chunks), stops)


@given(letters, stop_lists)
def test_only_a_possible_beginning_is_held_back(text: str, stops: list[str]) -> None:
    safe, matched = StopMatcher(stops).push(text)
    held = text[len(safe) :]
    if matched is None and held:
        assert any(stop.startswith(held) and stop != held for stop in stops)
    if matched is None:
        for size in range(len(held) + 1, len(text) + 1):
            assert not any(stop.startswith(text[-size:]) for stop in stops)


def test_the_stop_string_complete_first_wins_and_of_several_the_longest() -> None:
    assert StopMatcher(["abcd", "bc"]).push("xabcd") == ("xa", "bc")
    assert StopMatcher(["c", "bc", "abc"]).push("xabcd") == ("x", "abc")


def test_all_after_a_stop_string_is_dropped() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one EN") == ("one ", None)
    assert matcher.push("D two") == ("", "END")
    assert matcher.push("three") == ("", "END")
    assert matcher.flush() == ""


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopMatcher([]).push("text") == ("text", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        StopMatcher(["a", ""])
    assert caught.value.field == "stop"
