"""What is left of each method when a member is gone."""

from __future__ import annotations

import pytest

from cluster.blending.adaptive import Adaptation, AdaptiveMean, AdaptiveMixture, Evidence
from cluster.blending.base import Together
from cluster.blending.combined import Contrast, Mean, Product
from cluster.blending.gates import Choice, Network
from cluster.blending.losing import without
from cluster.blending.mixture import Mixture
from cluster.blending.routing import Cascade, Routed
from cluster.blending.warping import Warp

WARP = Warp(1.0, 0, 1.0, 0.0)
NETWORK = Network(())


def mixture(*weights: float) -> Mixture:
    return Mixture(weights, "token", 1)


def test_what_is_left_of_each_method() -> None:
    assert without(mixture(1, 2, 3), 1) == mixture(1, 0, 3)
    assert without(mixture(0, 2), 1) is None
    cascade = Cascade([0, 2, 1], 0, "word", 1, "entropy", 0.5)
    assert without(cascade, 0) == Mixture((0, 2, 1), "word", 1)
    assert without(cascade, 2) == Cascade([0, 2, 0], 0, "word", 1, "entropy", 0.5)
    alone = without(without(cascade, 2) or cascade, 1)
    assert alone == Mixture((1, 0, 0), "word", 1)
    routed = Routed(mixture(1, 2, 3), NETWORK, Choice([1, 2, 3], 2, [0, 0, 0]), 2)
    assert without(routed, 2) == mixture(1, 2, 0)
    left = without(routed, 0)
    assert isinstance(left, Routed)
    assert (left.mixture, left.choice.prior) == (mixture(0, 2, 3), [0, 2, 3])
    mean = without(Together((0, 2, 3), Mean([0.2, 0.3, 0.5], 8, WARP)), 2)
    assert mean == Together((0, 3), Mean([0.2 / 0.7, 0.5 / 0.7], 8, WARP))
    assert without(Together((1,), Product([1.0], 8, WARP)), 1) is None
    assert without(Together((0, 1), Contrast(0, 1, 1.0, 0.1, 8, WARP)), 1) is None


def test_evidence_of_those_that_are_left_still_counts() -> None:
    evidence = Evidence([0.25, 0.25, 0.5], Adaptation())
    for member, logprob in enumerate((-1.0, -2.0, -3.0)):
        evidence.note(member, 0, [logprob])
    kept = Evidence([0.25, 0.5], Adaptation())
    kept.note(0, 0, [-1.0])
    kept.note(1, 0, [-3.0])
    method = without(AdaptiveMixture(mixture(0.25, 0.25, 0.5), evidence), 1)
    assert isinstance(method, AdaptiveMixture)
    assert method.evidence.weights() == [kept.weights()[0], 0.0, kept.weights()[1]]
    other = Evidence([0.25, 0.25, 0.5], Adaptation())
    for member, logprob in enumerate((-1.0, -2.0, -3.0)):
        other.note(member, 0, [logprob])
    mean = without(Together((0, 1, 2), AdaptiveMean(other, WARP)), 1)
    assert isinstance(mean, Together)
    assert isinstance(mean.rule, AdaptiveMean)
    assert mean.rule.evidence.weights() == pytest.approx(kept.weights())
