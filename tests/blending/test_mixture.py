"""The schedule of a mixture: who speaks, how far, and nothing left to chance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from cluster.blending.base import Span
from cluster.blending.mixture import Mixture
from cluster.randomness import Purpose, uniform
from cluster.text.borders import Border

FALSE_ALARM_RATE = 1e-6

WEIGHTS = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=5).filter(any)


def speakers(mixture: Mixture, num_tokens: int) -> list[int]:
    """Who speaks each position, by runs."""
    found: list[int] = []
    while len(found) < num_tokens:
        run = mixture.next_run(len(found), num_tokens - len(found), dropped=False)
        assert run.position == len(found)
        assert run.max_tokens >= 1
        found += [run.member] * run.max_tokens
    return found


@given(WEIGHTS, st.integers(0, 2**64 - 1))
def test_members_without_weight_never_speak(weights: list[float], seed: int) -> None:
    mixture = Mixture(weights, "token", seed)
    assert all(weights[member] > 0 for member in speakers(mixture, 50))
    assert mixture.speakers == tuple(i for i, weight in enumerate(weights) if weight > 0)


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [1, 0, 3], [2, 2]])
def test_tokens_are_drawn_by_weight(weights: list[float]) -> None:
    drawn = speakers(Mixture(weights, "token", seed=11), 20_000)
    counts = [drawn.count(i) for i, weight in enumerate(weights) if weight > 0]
    expected = [20_000 * weight / sum(weights) for weight in weights if weight > 0]
    assert chisquare(counts, expected).pvalue > FALSE_ALARM_RATE


def test_a_wrong_weight_is_noticed() -> None:
    drawn = speakers(Mixture([0.5, 0.5], "token", seed=11), 20_000)
    counts = [drawn.count(0), drawn.count(1)]
    assert chisquare(counts, [20_000 * 0.53, 20_000 * 0.47]).pvalue < FALSE_ALARM_RATE


@given(WEIGHTS, st.integers(0, 999), st.integers(1, 7))
def test_a_run_joins_consecutive_spans_of_one_member(
    weights: list[float], seed: int, span: int
) -> None:
    mixture = Mixture(weights, span, seed)
    run = mixture.next_run(0, 1000, dropped=False)
    if run.max_tokens < 1000:
        assert run.max_tokens % span == 0
        assert mixture.speaker(run.max_tokens) != run.member
    assert all(mixture.speaker(t) == run.member for t in range(0, run.max_tokens, span))


def test_the_schedule_depends_on_seed_and_position_alone() -> None:
    one, other = Mixture([1, 1], "token", 5), Mixture([1, 1], "token", 5)
    assert speakers(one, 200)[120:] == [other.speaker(t) for t in range(120, 200)]
    assert speakers(one, 200) != speakers(Mixture([1, 1], "token", 6), 200)


def test_a_reply_has_one_speaker() -> None:
    mixture = Mixture([1, 1, 1], "response", 9)
    run = mixture.next_run(0, 300, dropped=False)
    assert run.max_tokens == 300
    assert run.border is Border.NONE
    assert mixture.speakers == (run.member,)


@pytest.mark.parametrize(("span", "border"), [("word", Border.WORD), ("sentence", Border.SENTENCE)])
def test_at_a_border_the_share_tells_who_goes_on(span: Span, border: Border) -> None:
    mixture = Mixture([0.2, 0.5, 0.3], span, 3)
    for position in range(300):
        run = mixture.next_run(0, 10, dropped=False)
        assert run.border is border
        begin, end = run.share
        goes_on = begin <= uniform(3, Purpose.SPEAKER, position) < end
        assert goes_on == (mixture.speaker(position) == run.member)
