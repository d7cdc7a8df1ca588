"""Drafted tokens: one pass decides them, and the text is what it would have been without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.blending.warping import draw, log_normalised
from cluster.engine.engine import Engine
from cluster.engine.fake import next_token
from cluster.engine.sampler import SampleRow, sample
from cluster.engine.types import Rank, Sample, SamplingParams, Verdict, Work
from cluster.errors import InvalidRequest
from cluster.randomness import Purpose, key

from .factories import GREEDY, Result, ask, greedy, make_engine, make_fake_engine, save_model

VOCAB_SIZE = 64
PROMPT = [3, 1, 4, 1, 5]


def likeliest(ids: Sequence[int], num: int) -> list[int]:
    """What the fake model goes on with."""
    ids, begin = list(ids), len(ids)
    for _ in range(num):
        ids.append(next_token(ids, VOCAB_SIZE))
    return ids[begin:]


def checking(
    num_drafted: int, checked: Sequence[int], params: SamplingParams = GREEDY, seed: int = 0
) -> Sample:
    """Decides a draft, and draws one token behind it."""
    num_kept = 0

    def judge(token: int) -> Verdict:
        nonlocal num_kept
        num_kept += 1
        return Verdict.KEEP_AND_STOP if num_kept > num_drafted else Verdict.KEEP

    return Sample(params, seed, 0, judge, num_drafted=num_drafted, checked=tuple(checked))


def check_draft(engine: Engine, draft: Sequence[int], checked: Sequence[int]) -> tuple[int, Result]:
    sequence = engine.open()
    return sequence, ask(engine, sequence, 0, [*PROMPT, *draft], checking(len(draft), checked))


def test_a_right_draft_is_decided_in_one_pass_with_one_token_more() -> None:
    engine = make_fake_engine()
    right = likeliest(PROMPT, 5)
    sequence, result = check_draft(engine, right[:4], range(4))
    assert result.ids == right
    assert result.num_passes == 1
    assert result.num_processed == len(PROMPT) + 4
    assert engine.ids(sequence) == PROMPT + right


@pytest.mark.parametrize("wrong_at", range(4))
def test_the_first_wrong_token_is_replaced_and_what_follows_dropped(wrong_at: int) -> None:
    engine = make_fake_engine()
    right = likeliest(PROMPT, 4)
    draft = [*right[:wrong_at], (right[wrong_at] + 1) % VOCAB_SIZE, *right[wrong_at + 1 :]]
    sequence, result = check_draft(engine, draft, range(4))
    assert result.ids == right[: wrong_at + 1]
    assert engine.ids(sequence) == PROMPT + right[: wrong_at + 1]
    assert engine._pool.cached_ids(sequence) == PROMPT + right[:wrong_at]
    more = ask(engine, sequence, len(PROMPT) + wrong_at + 1, [], greedy(6))
    assert more.ids == likeliest(PROMPT + right[: wrong_at + 1], 6)
    assert more.num_processed == 1 + 5  # nothing that stands is fed again


def test_what_others_say_is_taken_as_it_is() -> None:
    engine = make_fake_engine()
    said = [9, 9, 9, 9]  # not what the model would say
    after = likeliest([*PROMPT, 9, 9], 1)[0]
    said[2] = after
    _, result = check_draft(engine, said, [2])
    assert result.ids == [after, *likeliest([*PROMPT, *said], 1)]
    said[2] = (after + 1) % VOCAB_SIZE
    sequence, result = check_draft(engine, said, [2])
    assert result.ids == [after]
    assert engine.ids(sequence) == [*PROMPT, 9, 9, after]


def test_a_draft_that_comes_in_chunks_is_decided_alike() -> None:
    right = likeliest(PROMPT, 9)
    for wrong_at in range(9):
        draft = [*right[:wrong_at], (right[wrong_at] + 1) % VOCAB_SIZE, *right[wrong_at + 1 :]]
        engine = make_fake_engine(max_batch_tokens=3)
        _, result = check_draft(engine, draft[:8], range(8))
        assert result.ids == right[: wrong_at + 1]
        engine.check_integrity()


def test_an_end_of_turn_drops_the_draft_behind_it() -> None:
    engine = make_fake_engine()
    right = likeliest(PROMPT, 4)
    sample = checking(4, range(4))
    sample.judge = lambda token: Verdict.DROP_AND_STOP if token == right[2] else Verdict.KEEP
    sequence = engine.open()
    result = ask(engine, sequence, 0, [*PROMPT, *right], sample)
    assert result.ids == right[:2]
    assert engine.ids(sequence) == PROMPT + right[:2]


@pytest.mark.parametrize("kind", ["llama", "bloom", "mamba2"])
def test_a_draft_never_changes_what_is_drawn(kind: str, tmp_path: Path) -> None:
    """Against drawing one after another, on real models with all kinds of state."""
    folder = tmp_path / "model"
    save_model(kind, folder)
    engine, numbers = make_engine(folder), random.Random(5)
    for seed in range(12):
        params = [SamplingParams(), SamplingParams(0.8, top_k=9), SamplingParams(1.2, top_p=0.8)]
        law = params[seed % 3]
        text = ask(engine, engine.open(), 0, PROMPT, drawing(12, law, seed)).ids
        sequence, drawn = engine.open(), list[int]()
        while len(drawn) < 12:
            num = min(4, 11 - len(drawn))
            draft = text[len(drawn) : len(drawn) + num]
            if num and numbers.random() < 0.7:
                draft[numbers.randrange(num)] = numbers.randrange(97)
            want = checking(num, range(num), law, seed)
            want.first_position = len(drawn)
            start = len(PROMPT) + len(drawn) if drawn else 0
            news = draft if drawn else [*PROMPT, *draft]
            drawn += ask(engine, sequence, start, news, want).ids
        assert drawn == text


def drawing(num: int, params: SamplingParams, seed: int) -> Sample:
    sample = greedy(num)
    sample.params, sample.seed = params, seed
    return sample


def test_a_race_by_id_is_the_routers() -> None:
    """So a draft for a distribution that the router draws from is that draw wherever both agree."""
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(1)) * 2
    keys = [key(7, Purpose.TOKEN, position) for position in range(40)]
    rows = [SampleRow(SamplingParams(), bits, by_id=True) for bits in keys]
    drawn = [token.token for token in sample(logits, rows)]
    ids = np.arange(300)
    laws = [log_normalised(row.astype(np.float64)) for row in logits.numpy()]
    assert drawn == [int(ids[draw(ids, law, k)]) for law, k in zip(laws, keys, strict=True)]
    rows[::2] = [SampleRow(SamplingParams(), bits) for bits in keys[::2]]
    assert [token.token for token in sample(logits, rows)][1::2] == drawn[1::2]


def test_of_several_positions_only_the_first_may_be_barred_from_ending() -> None:
    engine = make_fake_engine()
    want = Rank(None, banned=(0, 1), num_banned=2, num_positions=3)
    engine.submit(Work(engine.open(), 0, [*PROMPT, 7, 8], want))
    told = [output.distribution for output in engine.step() if output.distribution is not None]
    assert [0 in law.ids.tolist() for law in told] == [False, False, True]


def test_drafts_that_cannot_be_are_refused() -> None:
    engine = make_fake_engine()
    with pytest.raises(InvalidRequest, match="cannot be drafted"):
        ask(engine, engine.open(), 0, [1, 2], checking(2, [0]))
    with pytest.raises(InvalidRequest, match="within the draft"):
        ask(engine, engine.open(), 0, [1, 2, 3], checking(2, [2]))
