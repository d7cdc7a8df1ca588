"""Works that say which ids may come next: their law, their neighbours, and what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cluster.engine import law
from cluster.engine.engine import Engine
from cluster.engine.law import warp
from cluster.engine.rank import rank
from cluster.engine.sampler import SampleRow, sample
from cluster.engine.types import Output, Rank, Sample, SamplingParams, Verdict, Work, WorkEnd
from cluster.errors import Unsupported

from .factories import VOCAB_SIZE, Result, ask, greedy, make_fake_engine, make_ids, run, stop_after

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PARAMS = [
    SamplingParams(),
    SamplingParams(0.0),
    SamplingParams(0.7, top_p=0.8),
    SamplingParams(1.3, top_k=5, min_p=0.02),
]


def bits(ids: Sequence[int], size: int = VOCAB_SIZE) -> bytes:
    """A mask of these ids, with bits set beyond the vocabulary, as the grammar library may."""
    flags = np.zeros(-(-size // 32) * 32 + 32, dtype=bool)
    flags[list(ids)] = True
    flags[size:] = True
    return np.packbits(flags, bitorder="little").tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_candidates", [4, 1024])
def test_a_masked_row_is_drawn_as_if_all_other_logits_were_minus_infinity(
    device: str, num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(law, "NUM_CANDIDATES", num_candidates)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, VOCAB_SIZE, generator=generator) * 3
    allowed = [sorted(set(make_ids(1 + i % 9, seed=i))) if i % 3 else None for i in range(40)]
    cut, rows, plain = logits.clone(), [], []
    for i, ids in enumerate(allowed):
        banned = (int(logits[i].argmax()),) if i % 4 == 0 else ()
        mask = None if ids is None else bits(ids)
        if ids is not None:
            cut[i] = -math.inf
            cut[i, ids] = logits[i, ids]
            banned = () if len(ids) == 1 else banned
        rows.append(SampleRow(PARAMS[i % 4], 7919 * i, banned, mask, num_top=3))
        plain.append(SampleRow(PARAMS[i % 4], 7919 * i, banned))
    found = sample(logits.to(device), rows)
    expected = sample(cut.to(device), plain)
    own = torch.log_softmax(logits, dim=-1)
    for i, ids in enumerate(allowed):
        assert found[i].token == expected[i].token
        assert ids is None or found[i].token in ids
        # what is reported is the model's own
        assert found[i].logprob == pytest.approx(float(own[i, found[i].token]), abs=1e-5)
        assert found[i].top[0][0] == int(logits[i].argmax())


def test_rows_without_a_mask_do_not_change_beside_rows_with_one() -> None:
    logits = torch.randn(8, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    free = [SampleRow(PARAMS[i % 4], i, num_top=2) for i in range(8)]
    among = [
        SampleRow(row.params, row.key, (), bits([1, 2]) if i % 2 else None, row.num_top)
        for i, row in enumerate(free)
    ]
    before = logits.clone()
    assert sample(logits, among)[::2] == sample(logits, free)[::2]
    assert torch.equal(logits, before)


def test_a_masked_distribution_is_that_of_the_allowed_ids() -> None:
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    ids = [3, 8, 50, VOCAB_SIZE - 1]
    laws = [None, SamplingParams(0.6), SamplingParams(1.0, top_k=2)]
    masks = [bits(ids), bits(ids), None]
    found = rank(logits, [Rank(params, ids=[4]) for params in laws], masks)
    for i, params in enumerate(laws[:2]):
        cut = torch.full((1, VOCAB_SIZE), -math.inf)
        cut[0, ids] = logits[i, ids]
        expected = warp(cut, [params or SamplingParams()])[0].numpy()
        told = found[i]
        assert told is not None
        assert told.ids.tolist() == ids
        np.testing.assert_allclose(np.exp(told.logprobs), expected[told.ids], atol=1e-6)
        assert told.rest == 0
    assert found[2] is not None
    assert set(found[2].ids.tolist()) == set(logits[2].topk(2).indices.tolist())


def only_next(ids: list[int]) -> bytes:
    """After an id, the next number alone."""
    return bits([(ids[-1] + 1) % 64], 64)


def test_the_mask_is_asked_once_per_token_with_all_ids_so_far_at_no_pass_more() -> None:
    asked: list[list[int]] = []

    def allowed(ids: list[int]) -> bytes:
        asked.append(list(ids))
        return only_next(ids)

    engine = make_fake_engine()
    result = ask(engine, engine.open(), 0, [5, 6, 7], greedy(5, allowed=allowed))
    assert result.ids == [8, 9, 10, 11, 12]
    assert asked == [[5, 6, 7, *range(8, 8 + n)] for n in range(5)]
    free = ask(engine, engine.open(), 0, [9, 9, 9], greedy(5))
    assert result.num_passes == free.num_passes == 5


def test_a_dropped_token_was_never_said() -> None:
    asked: list[list[int]] = []

    def allowed(ids: list[int]) -> bytes:
        asked.append(list(ids))
        return only_next(ids)

    engine = make_fake_engine()
    sequence = engine.open()
    ask(
        engine,
        sequence,
        0,
        [5],
        greedy(2, judge=stop_after(2, Verdict.DROP_AND_STOP), allowed=allowed),
    )
    again = ask(engine, sequence, 2, [], greedy(1, allowed=allowed))
    assert (asked, again.ids) == ([[5], [5, 6], [5, 6]], [7])


def raising(error: Exception) -> object:
    def allowed(ids: list[int]) -> bytes:
        if len(ids) > 3:
            raise error
        return only_next(ids)

    return allowed


def outputs_of(engine: Engine, works: Sequence[Work]) -> dict[int, list[Output]]:
    for work in works:
        engine.submit(work)
    found: dict[int, list[Output]] = {work.sequence: [] for work in works}
    while engine.has_work():
        for output in engine.step():
            found[output.sequence].append(output)
        engine.check_integrity()
    return found


def test_a_mask_that_cannot_be_made_fails_its_work_alone() -> None:
    engine = make_fake_engine()
    stuck, broken, free = engine.open(), engine.open(), engine.open()
    error = Unsupported("FORMAT_DEAD_END", "nothing goes on", field="format.regex")
    found = outputs_of(
        engine,
        [
            Work(stuck, 0, [1, 2], greedy(9, allowed=raising(error))),
            Work(broken, 0, [3, 4], greedy(9, allowed=raising(ValueError("defect")))),
            Work(free, 0, [5, 6], greedy(9)),
        ],
    )
    for sequence, cause, words in ((stuck, error, "nothing goes on"), (broken, None, "defect")):
        last = found[sequence][-1]
        assert (last.end, last.cause) == (WorkEnd.FAILED, cause)
        assert words in last.error
        assert sum(len(output.tokens) for output in found[sequence]) == 2
    alone = make_fake_engine()
    expected = ask(alone, alone.open(), 0, [5, 6], greedy(9))
    result = Result()
    for output in found[free]:
        result.add(output)
    assert result.ids == expected.ids
    again = run(engine, [Work(stuck, 2, [7], greedy(3))])[0]  # it can go on, with no state harmed
    assert again.end is WorkEnd.DONE


def test_a_rank_that_cannot_be_masked_fails_alone_and_a_kept_row_is_masked_anew() -> None:
    engine = make_fake_engine()
    first, second = engine.open(), engine.open()
    error = Unsupported("FORMAT_DEAD_END", "nothing goes on")
    found = outputs_of(
        engine,
        [
            Work(first, 0, [1, 2, 3, 4], Rank(None, allowed=raising(error))),  # type: ignore[arg-type]
            Work(second, 0, [5, 6], Rank(None, allowed=only_next)),
        ],
    )
    assert found[first][-1].cause is error
    (told,) = found[second]
    assert told.distribution is not None
    assert told.distribution.ids.tolist() == [7]
    (again,) = outputs_of(
        engine, [Work(second, 2, [], Rank(None, allowed=lambda ids: bits([1, 2], 64)))]
    )[second]
    assert again.distribution is not None
    assert (again.distribution.ids.tolist(), again.num_passes) == ([1, 2], 0)


def test_what_a_judge_refuses_is_told_as_it_is() -> None:
    error = Unsupported("NOT_SO", "not so")

    def judge(token: int) -> object:
        raise error

    engine = make_fake_engine()
    want = Sample(SamplingParams(0.0), 0, 0, judge)  # type: ignore[arg-type]
    sequence = engine.open()
    (output,) = outputs_of(engine, [Work(sequence, 0, [1], want)])[sequence]
    assert (output.end, output.cause) == (WorkEnd.FAILED, error)
