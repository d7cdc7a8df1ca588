"""Weights that follow the transcript, against Bayes' rule written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.blending.adaptive import Adaptation, AdaptiveMixture, Evidence
from cluster.blending.mixture import Mixture

PRIOR = [0.5, 0.3, 0.2]


def bayes(prior: list[float], logprobs: list[list[float]], strength: float = 1.0) -> list[float]:
    scores = [p * math.exp(strength * sum(known)) for p, known in zip(prior, logprobs, strict=True)]
    return [score / sum(scores) for score in scores]


def test_before_anything_is_known_the_prior_holds() -> None:
    assert Evidence(PRIOR, Adaptation()).weights() == pytest.approx(PRIOR)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_weights_are_the_posterior_of_what_all_have_read(strength: float) -> None:
    logprobs = np.random.default_rng(1).uniform(-3, 0, (3, 20)).tolist()
    evidence = Evidence(PRIOR, Adaptation(strength))
    for member, known in enumerate(logprobs):
        evidence.note(member, 0, known[:5])
        evidence.note(member, 5, known[5 : 10 + member])  # two have read further than the first
    read = [known[:10] for known in logprobs]
    assert evidence.num_tokens == 10
    assert evidence.weights() == pytest.approx(bayes(PRIOR, read, strength))


def test_a_window_forgets_and_a_floor_gives_everybody_a_chance() -> None:
    evidence = Evidence([0.5, 0.5], Adaptation(window=3))
    evidence.note(0, 0, [-9.0, -9.0, -1.0, -1.0, -1.0])
    evidence.note(1, 0, [-1.0, -1.0, -1.0, -1.0, -1.0])
    assert evidence.weights() == pytest.approx([0.5, 0.5])
    evidence = Evidence([0.5, 0.5], Adaptation(floor=0.1))
    evidence.note(0, 0, [-1e9])
    evidence.note(1, 0, [-1.0])
    assert evidence.weights() == pytest.approx([0.1, 0.9])


def test_a_member_without_weight_never_gets_any_and_is_not_waited_for() -> None:
    evidence = Evidence([0.5, 0.5, 0.0], Adaptation(floor=0.05))
    evidence.note(0, 0, [-1.0])
    evidence.note(1, 0, [-2.0])
    first, second, third = evidence.weights()
    assert third == 0.0
    assert first + second == pytest.approx(1)
    assert first > second


def test_what_is_told_again_stands() -> None:
    evidence = Evidence(PRIOR, Adaptation())
    for member in range(3):
        evidence.note(member, 0, [-1.0, -2.0 * member, -1.0])
    once = evidence.weights()
    evidence.note(1, 0, [-1.0, -2.0, -1.0])
    assert evidence.weights() == once


def test_runs_are_planned_with_the_weights_of_now() -> None:
    evidence = Evidence([0.5, 0.5], Adaptation())
    method = AdaptiveMixture(Mixture((1.0, 1.0), "token", seed=3), evidence)
    fixed = Mixture((1.0, 1.0), "token", seed=3)
    assert method.next_run(0, 50, dropped=False) == fixed.next_run(0, 50, dropped=False)
    evidence.note(0, 0, [-20.0])
    evidence.note(1, 0, [-1.0])
    assert method.next_run(1, 50, dropped=False).member == 1
    assert method.next_run(1, 50, dropped=False).max_tokens == 50
