"""The combining rules against straight float64 formulas over whole vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cluster.blending.base import Ask, Rule
from cluster.blending.combined import Contrast, Mean, Product, Proxy
from cluster.blending.warping import Warp, draw, log_normalised, warped
from cluster.distribution import LEAST_REST, Distribution
from cluster.randomness import Purpose, key

FALSE_ALARM_RATE = 1e-6
SIZE = 200


def told(whole: np.ndarray, ask: Ask) -> Distribution:
    """What a member with these log-probabilities answers."""
    possible = np.flatnonzero(whole > -np.inf)
    if ask.num_top == 0 or ask.num_top >= len(possible):
        best = possible
    else:
        best = np.argsort(-whole, kind="stable")[: ask.num_top]
    ids = np.union1d(best, np.asarray(ask.ids, dtype=np.int64))
    inside = np.exp(whole[ids]).sum()
    rest = (
        0.0
        if np.isin(possible, ids).all()
        else max(LEAST_REST, float(np.exp(whole).sum() - inside))
    )
    return Distribution(ids, whole[ids], rest)


def run(rule: Rule, members: Sequence[np.ndarray]) -> tuple[np.ndarray, float, int]:
    """The combined probabilities over all ids, the bound, and how many rounds of asking it took."""
    found = [told(m, ask) for m, ask in zip(members, rule.first_asks(), strict=True)]
    num_rounds = 1
    while any(asks := rule.more_asks(found)):
        found = [
            d if ask is None else d.merged(told(m, ask))
            for d, m, ask in zip(found, members, asks, strict=True)
        ]
        num_rounds += 1
    combined = rule.combine(found)
    probs = np.zeros(SIZE)
    probs[combined.ids] = np.exp(combined.logprobs)
    np.testing.assert_allclose(combined.shares.sum(axis=0), 1.0)
    return probs, combined.bound, num_rounds


def random_members(seed: int, num: int, scale: float = 3.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=SIZE) * scale
    return [log_normalised(common + rng.normal(size=SIZE)) for _ in range(num)]


def reference_warp(p: np.ndarray, warp: Warp) -> np.ndarray:
    """The law, as it is read."""
    if warp.temperature == 0:
        return np.eye(len(p))[int(np.argmax(p))]
    q = (p / p.max()) ** (1 / warp.temperature)
    q /= q.sum()
    if 0 < warp.top_k < len(q):
        q = np.where(q >= np.sort(q)[-warp.top_k], q, 0)
        q /= q.sum()
    if warp.top_p < 1:
        order = np.sort(q)[::-1]
        q = np.where(q >= order[int(np.argmax(np.cumsum(order) >= warp.top_p))], q, 0)
        q /= q.sum()
    q = np.where(q >= warp.min_p * q.max(), q, 0)
    return q / q.sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def exact(kind: str, members: Sequence[np.ndarray], weights: Sequence[float], warp: Warp) -> Any:
    """The rule, as its paper has it. For a mean, members are warped already, unless greedy."""
    match kind:
        case "mean":
            mixed = sum(w * np.exp(m) for w, m in zip(weights, members, strict=True))
            return reference_warp(mixed, warp) if warp.is_greedy else mixed
        case "product":
            summed = sum(w * m for w, m in zip(weights, members, strict=True))
            return reference_warp(softmax(summed), warp)
        case "proxy":
            base, expert, anti = members
            return reference_warp(softmax(base + 0.7 * (expert - anti)), warp)
        case "contrast":
            expert, amateur = members
            plausible = np.exp(expert) >= 0.05 * np.exp(expert.max())
            contrast = np.where(plausible, expert - 0.5 * amateur, -np.inf)
            return reference_warp(softmax(contrast), warp)
    raise AssertionError(kind)


def make(kind: str, weights: Sequence[float], num_candidates: int, warp: Warp) -> Rule:
    match kind:
        case "mean":
            return Mean(weights, num_candidates, warp)
        case "product":
            return Product(weights, num_candidates, warp)
        case "proxy":
            return Proxy(0, 1, 2, 0.7, warp)
        case _:
            return Contrast(0, 1, 0.5, 0.05, num_candidates or 8, warp)


NUM_MEMBERS = {"mean": 3, "product": 3, "proxy": 3, "contrast": 2}
WEIGHTS = [0.5, 0.3, 0.2]
WARPS = [Warp(), Warp(0.7, top_p=0.9), Warp(1.3, top_k=20, min_p=0.02), Warp(0.0)]


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("kind", NUM_MEMBERS)
def test_told_everything_each_rule_is_its_formula(kind: str, warp: Warp) -> None:
    for seed in range(50):
        members = random_members(seed, NUM_MEMBERS[kind])
        probs, bound, _ = run(make(kind, WEIGHTS, 0, warp), members)
        np.testing.assert_allclose(probs, exact(kind, members, WEIGHTS, warp), atol=1e-12)
        assert bound < 1e-12


@pytest.mark.parametrize("kind", ["mean", "product"])
def test_the_bound_of_a_truncated_ensemble_holds_over_a_thousand_steps(kind: str) -> None:
    rng = np.random.default_rng(5)
    for seed in range(1000):
        members = random_members(seed, 3, scale=float(rng.uniform(0.1, 5)))
        num_candidates = int(rng.integers(1, 60))
        rule = make(kind, WEIGHTS, num_candidates, Warp())
        probs, bound, num_rounds = run(rule, members)
        distance = np.abs(probs - exact(kind, members, WEIGHTS, Warp())).sum() / 2
        assert distance <= bound + 1e-9
        assert num_rounds <= 2
        if kind == "mean":
            assert distance == pytest.approx(bound, abs=1e-9)  # no looser than it must be


@pytest.mark.parametrize("kind", ["mean", "product"])
def test_a_truncated_greedy_draw_knows_whether_it_is_the_exact_one(kind: str) -> None:
    num_sure = 0
    for seed in range(500):
        members = random_members(seed, 3, scale=2.0)
        warp = Warp(0.0)
        probs, bound, _ = run(make(kind, WEIGHTS, 20, warp), members)
        assert bound in (0.0, 1.0)
        if bound == 0.0:
            assert np.array_equal(probs, exact(kind, members, WEIGHTS, warp))
            num_sure += 1
    assert num_sure > 50


def test_members_that_truncate_themselves_make_an_exact_mean_of_few_ids() -> None:
    warp = Warp(0.8, top_p=0.8)
    for seed in range(200):
        members = [warped(m, warp) for m in random_members(seed, 3)]
        probs, bound, _ = run(make("mean", WEIGHTS, 64, warp), members)
        np.testing.assert_allclose(probs, exact("mean", members, WEIGHTS, warp), atol=1e-12)
        assert bound < 1e-12


@pytest.mark.parametrize("num_candidates", [1, 3, 64])
def test_a_contrast_is_exact_however_little_is_told_at_first(num_candidates: int) -> None:
    for seed in range(200):
        members = random_members(seed, 2, scale=1.0)
        probs, bound, num_rounds = run(make("contrast", [], num_candidates, Warp()), members)
        np.testing.assert_allclose(probs, exact("contrast", members, [], Warp()), atol=1e-12)
        assert bound == 0.0
        assert num_rounds <= 3


@pytest.mark.parametrize("kind", ["mean", "contrast"])
def test_a_member_sure_to_the_last_digit_is_still_asked_for_the_rest(kind: str) -> None:
    sure = np.full(SIZE, -60.0)
    sure[5] = 0.0  # what it tells of its best id rounds to everything
    members = [random_members(2, 1)[0], log_normalised(sure), random_members(3, 1)[0]]
    members = members[: NUM_MEMBERS[kind]]
    rule = make(kind, WEIGHTS, 3, Warp())
    probs, _, num_rounds = run(rule, members)
    assert num_rounds > 1
    assert np.isfinite(probs).all()
    assert np.abs(probs - exact(kind, members, WEIGHTS, Warp())).sum() / 2 < 0.5
    if kind == "contrast":
        np.testing.assert_allclose(probs, exact(kind, members, WEIGHTS, Warp()), atol=1e-12)


def test_an_id_that_one_side_of_a_difference_excludes_has_no_part() -> None:
    for kind, subtracted in (("proxy", 2), ("contrast", 1)):
        members = random_members(4, NUM_MEMBERS[kind])
        best = int(members[0].argmax())
        members[subtracted][best] = -np.inf
        probs, _, _ = run(make(kind, WEIGHTS, 0, Warp()), members)
        assert probs[best] == 0
        assert probs.sum() == pytest.approx(1)


def test_ids_that_all_members_exclude_stay_excluded() -> None:
    for kind, num in NUM_MEMBERS.items():
        members = random_members(1, num)
        for member in members:
            member[[3, 7]] = -np.inf
        probs, _, _ = run(make(kind, WEIGHTS, 0, Warp()), members)
        assert not probs[[3, 7]].any()
        assert np.isfinite(probs).all()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.3, 1.0, 1.5]),
    st.integers(0, 50),
    st.sampled_from([0.01, 0.37, 0.8, 1.0]),
    st.sampled_from([0.0, 0.03, 1.0]),
)
def test_warping_agrees_with_the_law_as_it_is_read(
    quarters: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    warp = Warp(temperature, top_k, top_p, min_p)
    near = [Warp(temperature, top_k, min(1.0, top_p * (1 + d)), min_p) for d in (-1e-9, 1e-9)]
    probs = softmax(np.asarray(quarters) / 4)
    kept = [reference_warp(probs, other) > 0 for other in near]
    if top_p < 1 and not np.array_equal(kept[0], kept[1]):
        return  # rounding may decide
    found = np.exp(warped(np.log(probs), warp))
    np.testing.assert_allclose(found, reference_warp(probs, warp), atol=1e-9)


def test_draws_follow_the_distribution_and_do_not_depend_on_which_ids_are_told() -> None:
    logprobs = random_members(3, 1, scale=1.0)[0]
    ids = np.arange(SIZE)
    keys = [key(11, Purpose.TOKEN, i) for i in range(20_000)]
    counts = np.bincount([draw(ids, logprobs, k) for k in keys], minlength=SIZE)
    law = np.exp(logprobs) * len(keys)
    many = law >= 5
    observed = [*counts[many], counts[~many].sum()]
    assert chisquare(observed, [*law[many], law[~many].sum()]).pvalue > FALSE_ALARM_RATE
    flat = np.full(SIZE, len(keys) / SIZE)
    assert chisquare(counts, flat).pvalue < FALSE_ALARM_RATE
    likely = logprobs > np.median(logprobs)
    for k in keys[:500]:
        winner = draw(ids, logprobs, k)
        if likely[winner]:
            part = draw(ids[likely], logprobs[likely], k)
            assert ids[likely][part] == winner
