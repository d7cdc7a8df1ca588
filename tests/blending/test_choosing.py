"""Which of several replies is best."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.blending.choosing import (
    by_consensus,
    by_likelihood,
    by_pairs,
    by_vote,
    extracted,
)


def test_likelihood_is_per_byte_and_weighed() -> None:
    logprobs = np.array([[-10.0, -30.0], [-4.0, -4.0], [0.0, 0.0]])
    scores = by_likelihood(logprobs, [10, 2, 0], [0.25, 0.75])
    np.testing.assert_allclose(scores, [-(0.25 * 10 + 0.75 * 30) / 10, -2.0, -np.inf])


def test_consensus_prefers_what_is_like_the_others() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = [0.1, 0.2, 0.3, 0.2, 0.2]
    scores = by_consensus(vectors, weights)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        mass = sum(weights[j] for j in others)
        expected = sum(weights[j] * float(vectors[i] @ vectors[j]) for j in others) / mass
        assert scores[i] == pytest.approx(expected)


def test_a_reply_alone_is_its_own_consensus() -> None:
    assert by_consensus(np.ones((1, 1)), [1.0]).tolist() == [0.0]
    assert by_pairs(np.zeros((1, 1))).tolist() == [0.0]


def test_pairs_add_up() -> None:
    margins = np.array([[0, 1, -2], [-1, 0, 3], [2, -3, 0]])
    assert by_pairs(margins).tolist() == [-0.5, 1.0, -0.5]


@pytest.mark.parametrize(
    ("pattern", "reply", "answer"),
    [
        (r"\d+", "first 12, then 30.", "30"),
        (r"answer is (\w+)", "The answer is Paris. No, the answer is  LYON", None),
        (r"answer is\s+(\w+)", "The answer is Paris. No, the answer is  LYON", "lyon"),
        (r"\[(.*?)\]", "so [ a   b ]", "a b"),
        (r"\d+", "none", None),
        (r"#(\d*)", "# nothing follows", None),
        (r"ß+", "STRASSE straße", "ss"),
    ],
)
def test_the_last_answer_counts(pattern: str, reply: str, answer: str | None) -> None:
    expected = "paris" if pattern == r"answer is (\w+)" else answer
    assert extracted(pattern, reply) == expected


def test_votes_are_weighed_and_the_silent_cast_none() -> None:
    scores = by_vote(["7", "8", None, "7"], [0.2, 0.5, 0.1, 0.2])
    np.testing.assert_allclose(scores, [4 / 9, 5 / 9, 0, 4 / 9])
