"""The sampling law against a plain float64 reference, and against chance itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.engine import law, sampler
from cluster.engine.law import warp
from cluster.engine.sampler import NO_TOKEN, SampleRow, sample, score
from cluster.engine.types import SamplingParams
from cluster.randomness import GOLDEN, Purpose, key, mix, to_uniform

# Chi-square tests are seeded, so they pass or fail for good; were the seeds drawn anew, a right
# sampler would fail one of them with this probability.
FALSE_ALARM = 1e-4


class Counter(TorchDispatchMode):
    """Counts calls of kernels, and those whose result is as large as the logits."""

    num_calls = 0
    num_large = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        if not any(it.alias_info and not it.alias_info.is_write for it in returned):
            self.num_calls += 1
            is_largest = str(func).startswith(("aten.max", "aten.amax", "aten.argmax"))
            parts = args[:1] if is_largest else [result]
            self.num_large += any(
                isinstance(part, torch.Tensor) and part.shape[-1:] == (4096,) for part in parts
            )
        return result


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def reference(logits: Sequence[float], params: SamplingParams) -> np.ndarray:
    """The law in float64, written as it is read, renormalised after each truncation."""
    x = np.asarray(logits, dtype=np.float64)
    if params.temperature == 0:
        return np.eye(len(x))[int(np.argmax(x))]
    p = np.exp((x - x.max()) / params.temperature)
    p /= p.sum()
    if 0 < params.top_k < len(p):
        p = np.where(p >= np.sort(p)[-params.top_k], p, 0.0)
        p /= p.sum()
    if params.top_p < 1:
        order = np.sort(p)[::-1]
        crossing = int(np.argmax(np.cumsum(order) >= params.top_p))
        p = np.where(p >= order[crossing], p, 0.0)
        p /= p.sum()
    p = np.where(p >= params.min_p * p.max(), p, 0.0)
    return p / p.sum()


def on_the_edge(logits: Sequence[float], params: SamplingParams) -> bool:
    """Whether rounding may decide if a token is cut: then float32 and float64 may differ."""
    for name in ("top_p", "min_p"):
        for nudge in (1 - 1e-5, 1 + 1e-5):
            value = getattr(params, name) * nudge
            if 0 < value < 1:
                near = SamplingParams(
                    params.temperature,
                    params.top_k,
                    value if name == "top_p" else params.top_p,
                    value if name == "min_p" else params.min_p,
                )
                if ((reference(logits, near) > 0) != (reference(logits, params) > 0)).any():
                    return True
    return False


all_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 100]),
    top_p=st.sampled_from([0.01, 0.37, 0.8, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.21, 1.0]),
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], list[SamplingParams]]:
    size = draw(st.integers(1, 40))
    # a coarse grid, so that ties are common and differences are never within rounding
    logit = st.one_of(st.integers(-24, 24).map(lambda n: n / 4), st.just(-math.inf))
    row = st.lists(logit, min_size=size, max_size=size).filter(lambda r: max(r) > -math.inf)
    rows = draw(st.lists(row, min_size=1, max_size=4))
    return rows, draw(st.lists(all_params, min_size=len(rows), max_size=len(rows)))


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from([2, 8, 1024]))
def test_warp_and_score_agree_with_the_reference(
    batch: tuple[list[list[float]], list[SamplingParams]], num_candidates: int
) -> None:
    rows, params = batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(law, "NUM_CANDIDATES", num_candidates)
        probs = warp(torch.tensor(rows), params).numpy()
        targets = [int(np.argmin(row)) for row in rows]
        low = score(torch.tensor(rows), targets, params)
        high = score(torch.tensor(rows), [int(np.argmax(row)) for row in rows], params)
    for i, row in enumerate(rows):
        if on_the_edge(row, params[i]):
            continue
        expected = reference(row, params[i])
        np.testing.assert_allclose(probs[i], expected, atol=2e-6)
        assert math.exp(low[i].logprob) == pytest.approx(expected[targets[i]], abs=2e-6)
        assert math.exp(high[i].logprob) == pytest.approx(expected.max(), abs=2e-6)


def race(probs: np.ndarray, draw: int) -> int:
    """The winner, as the module says it is found, one number at a time."""
    size, width = len(probs), sampler._BLOCK
    num_blocks = -(-size // width)
    blocks = np.pad(probs, (0, num_blocks * width - size)).reshape(num_blocks, width)
    streams = (
        to_uniform(mix((draw + (i + 1) * GOLDEN) % 2**64)) for i in range(num_blocks + width)
    )
    noise = np.array([-math.log(u) for u in streams])
    block = int(np.argmax(blocks.sum(axis=1) / noise[:num_blocks]))
    return block * width + int(np.argmax(blocks[block] / noise[num_blocks:]))


@settings(max_examples=100, deadline=None)
@given(
    batches(), st.integers(0, 2**64 - 1), st.sampled_from([2, 8, 1024]), st.sampled_from([4, 128])
)
def test_a_draw_is_the_winner_of_the_race_between_what_the_law_leaves(
    batch: tuple[list[list[float]], list[SamplingParams]], draw: int, candidates: int, block: int
) -> None:
    rows, params = batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(law, "NUM_CANDIDATES", candidates)
        patch.setattr(sampler, "_BLOCK", block)
        drawn = sample(torch.tensor(rows), [SampleRow(p, draw) for p in params])
        for row, p, output in zip(rows, params, drawn, strict=True):
            if on_the_edge(row, p):
                continue
            probs = reference(row, p)
            assert probs[output.token] > 0
            assert output.token == race(probs, draw)
            x = np.asarray(row, dtype=np.float64)
            raw = x - x.max() - np.log(np.exp(x - x.max()).sum())
            assert output.logprob == pytest.approx(raw[output.token], abs=1e-5)


def test_logits_that_differ_by_rounding_give_the_same_draws() -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(1000, 20_000, generator=generator) * 3
    noisy = logits + 1e-5 * torch.randn(logits.shape, generator=generator)
    rows = [SampleRow(SamplingParams(), key(5, Purpose.TOKEN, i)) for i in range(len(logits))]
    pairs = zip(sample(logits, rows), sample(noisy, rows), strict=True)
    # A draw changes about as often as logits differ, some 1e-5; by inverting the distribution
    # function 4 of these would.
    assert sum(a.token != b.token for a, b in pairs) <= 1


def chi_square(logits: torch.Tensor, params: SamplingParams, law: np.ndarray, num: int) -> float:
    """The probability, were `law` true, of draws as far from it as these."""
    rows = [SampleRow(params, key(17, Purpose.TOKEN, i)) for i in range(num)]
    counts = np.zeros(len(law))
    for start in range(0, num, 500):
        part = rows[start : start + 500]
        for output in sample(logits.expand(len(part), -1), part):
            counts[output.token] += 1
    possible = law > 0
    if counts[~possible].any():
        return 0.0
    return float(stats.chisquare(counts[possible], law[possible] * num).pvalue)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(0.7),
        SamplingParams(1.3, top_k=7),
        SamplingParams(1.0, top_p=0.83),
        SamplingParams(1.0, min_p=0.08),
        SamplingParams(1.2, top_k=15, top_p=0.9, min_p=0.05),
    ],
)
def test_draws_follow_the_law_and_a_wrong_law_is_caught(params: SamplingParams) -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(3)) * 1.5
    law = reference(logits[0].tolist(), params)
    assert chi_square(logits, params, law, 20_000) > FALSE_ALARM
    colder = SamplingParams(params.temperature * 0.9, params.top_k, params.top_p, params.min_p)
    planted = reference((logits[0] / 0.9).tolist(), params)
    assert chi_square(logits, params, planted, 20_000) < FALSE_ALARM
    assert chi_square(logits, colder, law, 20_000) < FALSE_ALARM


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(5)) * 2
    rows = [
        SampleRow(SamplingParams(0.0), 1, num_top=3),
        SampleRow(SamplingParams(1.0), 2, banned=(7, 4999)),
        SampleRow(SamplingParams(0.8, top_k=40, top_p=0.9), 3, num_top=9),
        SampleRow(SamplingParams(1.5, top_p=0.99), 4),  # needs more than its candidates
        SampleRow(SamplingParams(0.5, min_p=0.1), 5),
        SampleRow(SamplingParams(1.0, top_k=2000), 6),
    ]
    params = [row.params for row in rows]
    together = sample(logits, rows)
    scored = score(logits, list(range(6)), params)
    for i, row in enumerate(rows):
        assert sample(logits[i : i + 1], [row]) == [together[i]]
        assert score(logits[i : i + 1], [i], params[i : i + 1]) == [scored[i]]
    backwards = sample(logits.flip(0), rows[::-1])
    assert backwards[::-1] == together


def test_ties_at_a_cut_are_kept_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    kept = [False, True, True, True, True, False]
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.6), SamplingParams(min_p=0.3)):
        assert (warp(logits, [params])[0] > 0).tolist() == kept


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    probs = warp(logits, [SamplingParams(top_k=2, top_p=0.55)])  # 4/7 alone is enough
    assert probs[0].tolist() == [1, 0, 0, 0]
    probs = warp(logits, [SamplingParams(top_p=0.55)])
    assert probs[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_temperature_zero_takes_the_lowest_id_of_equals_and_ignores_truncation() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0]] * 2)
    params = [SamplingParams(0.0, top_k=1, top_p=0.1, min_p=1.0)] * 2
    assert warp(logits, params)[0].tolist() == [0, 1, 0, 0]
    assert [o.token for o in sample(logits, [SampleRow(params[0], 99)] * 2)] == [1, 1]
    assert [o.logprob for o in score(logits, [1, 2], params)] == [0.0, -math.inf]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-12),
        SamplingParams(min_p=1.0),
        SamplingParams(1e-30),
    ],
)
def test_the_narrowest_truncations_leave_the_best_token(params: SamplingParams) -> None:
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(1))
    best = int(logits.argmax())
    for draw in (0, 1, 2**63, 2**64 - 1):
        assert sample(logits, [SampleRow(params, draw)])[0].token == best


def test_truncations_that_cut_nothing_change_nothing() -> None:
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(2))
    wide = SamplingParams(1.0, top_k=9999, top_p=1.0, min_p=0.0)
    assert torch.equal(warp(logits, [wide]), warp(logits, [SamplingParams()]))


@pytest.mark.parametrize("draw", [0, 1, 2**63, 2**64 - 1])
def test_a_token_of_probability_zero_is_never_drawn(draw: int) -> None:
    logits = torch.full((1, 500), -math.inf)
    logits[0, [100, 300]] = torch.tensor([-4.0, 2.0])
    assert sample(logits, [SampleRow(SamplingParams(), draw)])[0].token in (100, 300)


def test_banned_tokens_are_not_drawn_but_reports_do_not_know_of_bans() -> None:
    logits = torch.tensor([[4.0, 1.0, 2.0, 3.0]])
    raw = torch.log_softmax(logits, -1)[0].tolist()
    for temperature in (0.0, 1.0):
        row = SampleRow(SamplingParams(temperature), 999, banned=(0, 1, 3), num_top=2)
        output = sample(logits, [row])[0]
        assert output.token == 2
        assert output.logprob == pytest.approx(raw[2])
        assert [token for token, _ in output.top] == [0, 3]


def test_a_row_with_nothing_to_draw_says_so_and_spoils_no_other() -> None:
    logits = torch.zeros(5, 4)
    logits[0] = math.nan
    logits[1] = -math.inf
    logits[2, 1] = math.inf
    rows = [SampleRow(SamplingParams(), 6) for _ in range(5)]
    rows[3].banned = (0, 1, 2, 3)
    outputs = sample(logits, rows)
    assert [o.token for o in outputs] == [NO_TOKEN] * 4 + [race(np.full(4, 0.25), 6)]
    assert all(math.isnan(o.logprob) for o in outputs[:4])


def test_top_candidates_are_best_first_lowest_id_on_ties_and_possible() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, -math.inf, 3.0]] * 3)
    rows = [SampleRow(SamplingParams(), 5, num_top=n) for n in (2, 0, 9)]
    outputs = sample(logits, rows)
    raw = torch.log_softmax(logits, -1)[0].tolist()
    assert [token for token, _ in outputs[0].top] == [4, 1]
    assert outputs[1].top == ()
    assert outputs[2].top == tuple((i, pytest.approx(raw[i])) for i in (4, 1, 2, 0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_any_type_give_what_their_float32_values_give(
    dtype: torch.dtype, device: str
) -> None:
    logits = (torch.randn(4, 3000, generator=torch.Generator().manual_seed(9)) * 3).to(dtype)
    laws = [
        SamplingParams(),
        SamplingParams(0.7, 50, 0.9),
        SamplingParams(0.0),
        SamplingParams(1.4, top_p=0.999, min_p=0.001),
    ]
    rows = [SampleRow(p, 37, banned=(3,), num_top=4) for p in laws]
    here, there = sample(logits.float(), rows), sample(logits.to(device), rows)
    assert [o.token for o in here] == [o.token for o in there]
    assert [[t for t, _ in o.top] for o in here] == [[t for t, _ in o.top] for o in there]
    expected = warp(logits.float(), laws)
    torch.testing.assert_close(warp(logits.to(device), laws).cpu(), expected)
    assert [o.logprob for o in score(logits.to(device), [0, 1, 2, 3], laws)] == pytest.approx(
        [o.logprob for o in score(logits.float(), [0, 1, 2, 3], laws)], abs=1e-5
    )


def test_logits_given_are_left_as_they_were() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(4))
    before = logits.clone()
    params = [SamplingParams(0.5, 5, 0.9, 0.1), SamplingParams(0.0)]
    sample(logits, [SampleRow(p, 5, banned=(1,), num_top=3) for p in params])
    score(logits, [0, 1], params)
    warp(logits, params)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("num_rows", [1, 32])
def test_a_draw_takes_few_kernels_however_many_rows(num_rows: int) -> None:
    """And three passes over the vocabulary: the largest, the difference, the exponential."""
    logits = torch.randn(num_rows, 4096, generator=torch.Generator().manual_seed(6))
    rows = [SampleRow(SamplingParams(), key(5, Purpose.TOKEN, i)) for i in range(num_rows)]
    with Counter() as counter:
        sample(logits, rows)
    assert counter.num_calls == 49
    assert counter.num_large == 3


def test_no_rows_give_no_outputs() -> None:
    assert sample(torch.zeros(0, 10), []) == []
    assert score(torch.zeros(0, 10), [], []) == []
