"""Gates: from logits to weights, and the rules that give logits."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.blending.gates import Choice, Network, by_examples, by_keywords
from cluster.blending.mixture import Mixture
from cluster.blending.routing import Cascade, Routed
from cluster.text.borders import Border


def test_top_k_is_mixtrals_rule() -> None:
    """softmax(TopK(logits)), everything else 0."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(1, 7))
        top = int(rng.integers(1, size + 1))
        logits = rng.normal(size=size) * 3
        weights = Choice([1.0] * size, top, [0.0] * size).weights(logits)
        best = np.argsort(-logits)[:top]
        expected = np.zeros(size)
        expected[best] = np.exp(logits[best]) / np.exp(logits[best]).sum()
        np.testing.assert_allclose(weights, expected, atol=1e-12)


def test_weights_are_a_prior_and_costs_a_price() -> None:
    even = Choice([0.5, 0.5], 2, [1.0, 5.0])
    assert even.weights([0.0, 0.0]) == [0.5, 0.5]
    np.testing.assert_allclose(Choice([0.8, 0.2], 2, [0, 0]).weights([0, 0]), [0.8, 0.2])
    dear = Choice([0.5, 0.5], 2, [1.0, 5.0], price=0.25).weights([0.0, 0.0])
    np.testing.assert_allclose(dear, [1 / (1 + np.exp(-1)), 1 / (1 + np.e)])
    assert Choice([0.0, 1.0], 1, [0, 0]).weights([9.0, 0.0]) == [0.0, 1.0], "never without prior"


def test_a_network_is_linear_or_has_a_hidden_layer() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(5, 3)), rng.normal(size=(2, 5))
    bias = rng.normal(size=5)
    network = Network([(first, bias), (second, np.zeros(2))])
    features = rng.normal(size=3)
    expected = second @ np.maximum(first @ features + bias, 0)
    np.testing.assert_allclose(network.logits(features), expected)
    assert network.num_features == 3
    np.testing.assert_allclose(Network([(first, bias)]).logits(features), first @ features + bias)


def test_the_first_rule_that_matches_decides() -> None:
    rules = [(r"(?i)\bpsalm", "kjv"), (r"devil|psalm", "bierce")]
    assert by_keywords(rules, "austen", "Write a Psalm") == "kjv"
    assert by_keywords(rules, "austen", "the devil") == "bierce"
    assert by_keywords(rules, "austen", "a ball") == "austen"


def test_the_nearest_example_counts() -> None:
    examples = {"a": np.array([[1.0, 0.0], [0.0, 1.0]]), "b": np.array([[0.6, 0.8]])}
    logits = by_examples(np.array([0.0, 1.0]), examples, 10.0)
    assert logits == pytest.approx({"a": 10.0, "b": 8.0})


def test_a_cascade_hands_over_one_span_and_takes_back() -> None:
    cascade = Cascade([0.0, 1.0, 3.0], 0, "token", 7, "confidence", 0.5)
    assert cascade.speakers == (0, 1, 2)
    run = cascade.next_run(0, 20, dropped=False)
    assert (run.member, run.max_tokens, run.border, run.retake) == (0, 20, Border.NONE, False)
    others = []
    for position in range(400):
        cascade.doubt(position)
        run = cascade.next_run(position, 400, dropped=True)
        assert (run.max_tokens, run.retake) == (1, False), "the gate did not look at the token"
        others.append(run.member)
        assert cascade.next_run(position + 1, 9, dropped=False).member == 0
    assert set(others) == {1, 2}
    assert others.count(2) / 400 == pytest.approx(0.75, abs=0.1)


def test_a_cascade_by_words_retakes_what_was_dropped() -> None:
    cascade = Cascade([0.0, 1.0], 0, "word", 7, "entropy", 2.0)
    first = cascade.next_run(0, 20, dropped=False)
    assert (first.border, first.share) == (Border.WORD, (0.0, 1.0)), "it goes on while it is sure"
    cascade.doubt(4)
    other = cascade.next_run(4, 16, dropped=True)
    assert (other.member, other.share, other.retake) == (1, (0.0, 0.0), True)
    assert cascade.next_run(6, 14, dropped=True).retake


def test_a_routed_span_ends_before_the_next_decision() -> None:
    network = Network([(np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2))])
    routed = Routed(Mixture((0.5, 0.5), 3, 1), network, Choice([0.5, 0.5], 1, [0, 0]), reader=0)
    assert not routed.is_decided(0)
    routed.decide(0, [0.0, 5.0])
    run = routed.next_run(0, 20, dropped=False)
    assert (run.member, run.max_tokens) == (1, 3)
    assert routed.weights() == [0.0, 1.0]
    assert not routed.is_decided(3)
    routed.decide(3, [5.0, 0.0])
    assert routed.next_run(3, 2, dropped=False).member == 0
