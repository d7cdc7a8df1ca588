"""The engine against plain transformers: every kind of architecture, every device there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from cluster.engine.cached import CachedRunner
from cluster.engine.engine import Engine
from cluster.engine.types import Prefill, SamplingParams, Score, Work, WorkEnd

from .factories import (
    Result,
    ask,
    greedy,
    make_engine,
    make_ids,
    plain_greedy,
    plain_logprobs,
    run,
    save_model,
    step,
)

PAGED = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "mixtral",
    "gpt_oss",
]
CACHED = ["bloom", "lfm2"]


@dataclass
class Case:
    """A model on a device, and its folder."""

    model: PreTrainedModel
    folder: Path
    device: str

    def engine(self, **changes: object) -> Engine:
        return make_engine(self.folder, device=self.device, **changes)


@pytest.fixture(scope="module", params=PAGED + CACHED)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return save_model(request.param, folder), folder


@pytest.fixture
def case(saved: tuple[PreTrainedModel, Path], device: str) -> Case:
    model, folder = saved
    return Case(model.to(device), folder, device)


def test_the_fallback_serves_exactly_those_without_paged_attention(case: Case) -> None:
    is_cached = isinstance(case.engine()._runner, CachedRunner)
    assert is_cached == (case.model.config.model_type in CACHED)


def test_greedy_equals_generate_over_ragged_staggered_arrivals(case: Case) -> None:
    engine = case.engine(max_batch_tokens=24)
    prompts = [make_ids(num, seed=num) for num in (1, 40, 2, 17, 33, 16)]
    results: dict[int, Result] = {}
    sequences = []
    for i, prompt in enumerate(prompts):
        sequences.append(engine.open())
        engine.submit(Work(sequences[-1], 0, prompt, greedy(6 + i)))
        step(engine, results, num_steps=2)
    while engine.has_work():
        step(engine, results)
    for i, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
        assert results[sequence].end is WorkEnd.DONE
        assert results[sequence].ids == plain_greedy(case.model, prompt, 6 + i)


def test_greedy_equals_generate_when_the_cache_is_far_too_small(case: Case) -> None:
    page_bytes = 1 << 20
    whole = case.engine(kv_memory_bytes=page_bytes)
    size = whole._runner.page_size
    memory = page_bytes // whole._runner.num_pages * 5 + 1  # five pages and a bit
    engine = case.engine(kv_memory_bytes=memory, max_batch_tokens=24)
    assert 4 <= engine._runner.num_pages <= 6
    prompts = [make_ids(num, seed=num) for num in (size // 2, size + 3, size, 5, 2 * size)]
    sequences = [engine.open() for _ in prompts]
    for num_more in (4, 3):
        starts = [engine.ids(sequence) for sequence in sequences]
        works = [
            Work(sequence, len(ids), [] if ids else prompt, greedy(num_more))
            for sequence, ids, prompt in zip(sequences, starts, prompts, strict=True)
        ]
        results = run(engine, works)
        for ids, prompt, result in zip(starts, prompts, results, strict=True):
            assert result.ids == plain_greedy(case.model, ids or prompt, num_more)
    assert engine.counts.evictions > 0


def test_truncated_and_extended_sequences_equal_fresh_ones(case: Case) -> None:
    engine = case.engine()
    sequence = engine.open()
    ids = make_ids(37)
    ids += ask(engine, sequence, 0, ids, greedy(5)).ids
    for start, num_new, num_more in ((42, 3, 4), (30, 0, 3), (20, 9, 1), (30, 0, 2), (1, 20, 3)):
        ids = ids[:start] + make_ids(num_new, seed=start)
        result = ask(engine, sequence, start, ids[start:], greedy(num_more))
        assert result.ids == plain_greedy(case.model, ids, num_more)
        ids += result.ids
        assert engine.ids(sequence) == ids


def test_sequences_with_a_common_prefix_equal_fresh_ones(case: Case) -> None:
    engine = case.engine()
    prefix = make_ids(29)
    first, second, third = (engine.open() for _ in range(3))
    ask(engine, first, 0, [*prefix, 1, 2, 3], greedy(4))
    engine.close(first)
    for sequence, tail in ((second, [5, 6]), (third, [1, 2, 4])):
        result = ask(engine, sequence, 0, prefix + tail, greedy(4))
        assert result.ids == plain_greedy(case.model, prefix + tail, 4)
        if engine._runner.shares_rows:
            assert result.num_cached >= len(prefix)
            assert result.num_cached + result.num_processed == len(prefix + tail) + 3


def test_cancel_and_close_disturb_nobody_else(case: Case) -> None:
    engine = case.engine()
    prompts = [make_ids(12, seed=i) for i in range(3)]
    stays, cancelled, closed = (engine.open() for _ in range(3))
    results: dict[int, Result] = {}
    for sequence, prompt in zip((stays, cancelled, closed), prompts, strict=True):
        engine.submit(Work(sequence, 0, prompt, greedy(8)))
    step(engine, results, num_steps=3)
    engine.cancel(cancelled)
    engine.close(closed)
    while engine.has_work():
        step(engine, results)
    assert results[stays].ids == plain_greedy(case.model, prompts[0], 8)
    assert results[cancelled].end is WorkEnd.CANCELLED
    assert results[closed].end is None
    more = ask(engine, cancelled, engine.num_ids(cancelled), [], greedy(5))
    assert results[cancelled].ids + more.ids == plain_greedy(case.model, prompts[1], 8)


def test_scores_equal_plain_log_softmax_and_leave_the_cache_right(case: Case) -> None:
    engine = case.engine(max_batch_tokens=16)
    sequence, other = engine.open(), engine.open()
    prompt = make_ids(21)
    ids = prompt + ask(engine, sequence, 0, prompt, greedy(3)).ids
    ids += make_ids(19, seed=1)
    score, drawn = run(
        engine,
        [
            Work(sequence, 24, ids[24:], Score(30)),  # reaches back into what is cached
            Work(other, 0, prompt, greedy(6)),
        ],
    )
    expected = plain_logprobs(case.model, ids)
    assert score.ids == ids[-30:]
    for i, token in enumerate(score.tokens, len(ids) - 30):
        assert token.logprob == pytest.approx(float(expected[i - 1, ids[i]]), abs=2e-4)
    assert drawn.ids == plain_greedy(case.model, prompt, 6)
    assert ask(engine, sequence, len(ids), [], greedy(5)).ids == plain_greedy(case.model, ids, 5)


def test_sampling_after_a_prefill_equals_sampling_at_once(case: Case) -> None:
    engine = case.engine()
    sequence = engine.open()
    prompt = make_ids(23)
    assert ask(engine, sequence, 0, prompt, Prefill()).num_processed == 23
    again = ask(engine, sequence, 23, [], greedy(4))
    assert again.ids == plain_greedy(case.model, prompt, 4)
    assert again.num_processed == 4  # the last token again, for its logits


def test_half_precision_agrees_within_its_rounding(case: Case) -> None:
    engine = case.engine(dtype="bfloat16", max_batch_tokens=24)
    works, expected = [], []
    for num in (5, 50, 21, 34):
        ids = make_ids(num, seed=num)
        works.append(Work(engine.open(), 0, ids, Score(num - 1, SamplingParams())))
        logprobs = plain_logprobs(case.model, ids)
        expected.append(logprobs[:-1].gather(1, torch.tensor(ids[1:], device=case.device)[:, None]))
    results = run(engine, works)
    for result, wanted in zip(results, expected, strict=True):
        got = torch.tensor([token.logprob for token in result.tokens])
        assert float((got - wanted[:, 0].cpu()).abs().median()) < 0.15
