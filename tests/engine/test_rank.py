"""The distribution of the next token, told: against transformers, and at what cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from cluster.engine.engine import Engine
from cluster.engine.law import warp
from cluster.engine.types import (
    Output,
    Rank,
    Sample,
    SamplingParams,
    Score,
    Verdict,
    Work,
    WorkEnd,
)
from cluster.errors import InvalidRequest

from .factories import VOCAB_SIZE, make_engine, save_model

IDS = [5, 9, 2, 40, 7, 7, 31]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp("model")
    return save_model("llama", folder), folder


@pytest.fixture
def engine(model: tuple[PreTrainedModel, Path]) -> Engine:
    return make_engine(model[1])


def ask(
    engine: Engine, sequence: int, start: int, tokens: list[int], want: Rank | Sample | Score
) -> Output:
    engine.submit(Work(sequence, start, tokens, want))
    while True:
        for output in engine.step():
            if output.end is not None:
                return output


def law_of(model: PreTrainedModel, ids: list[int], params: SamplingParams | None) -> np.ndarray:
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[:, -1]
    probs: np.ndarray = warp(logits, [params or SamplingParams()])[0].double().numpy()
    return probs


@pytest.mark.parametrize("params", [None, SamplingParams(0.7, top_p=0.8), SamplingParams(0.0)])
def test_all_of_it_is_what_transformers_gives(
    model: tuple[PreTrainedModel, Path], engine: Engine, params: SamplingParams | None
) -> None:
    output = ask(engine, engine.open(), 0, IDS, Rank(params))
    assert output.end is WorkEnd.DONE
    found = output.distribution
    assert found is not None
    law = law_of(model[0], IDS, params)
    told = np.zeros(VOCAB_SIZE)
    told[found.ids] = np.exp(found.logprobs)
    np.testing.assert_allclose(told, law, atol=1e-6)
    assert found.rest == 0
    assert (np.diff(found.ids) > 0).all()


def test_a_part_of_it_has_the_best_ids_those_asked_for_and_the_rest(
    model: tuple[PreTrainedModel, Path], engine: Engine
) -> None:
    law = law_of(model[0], IDS, None)
    order = np.argsort(-law)
    worst = order[-2:].tolist()
    found = ask(engine, engine.open(), 0, IDS, Rank(None, num_top=5, ids=worst)).distribution
    assert found is not None
    assert set(found.ids.tolist()) == {*order[:5].tolist(), *worst}
    np.testing.assert_allclose(np.exp(found.logprobs), law[found.ids], atol=1e-6)
    assert found.rest == pytest.approx(1 - law[found.ids].sum(), abs=1e-6)


def test_banned_ids_have_no_part_in_it(model: tuple[PreTrainedModel, Path], engine: Engine) -> None:
    best = int(law_of(model[0], IDS, None).argmax())
    found = ask(engine, engine.open(), 0, IDS, Rank(None, banned=(best,))).distribution
    assert found is not None
    assert best not in found.ids
    assert np.exp(found.logprobs).sum() == pytest.approx(1, abs=1e-6)


def test_asked_again_without_news_it_costs_no_pass(engine: Engine) -> None:
    sequence = engine.open()
    first = ask(engine, sequence, 0, IDS, Rank(None, num_top=3))
    again = ask(engine, sequence, len(IDS), [], Rank(SamplingParams(0.5), num_top=1, ids=[4]))
    assert (first.num_passes, again.num_passes) == (1, 0)
    assert engine.counts.forward_passes == 1
    fresh = ask(engine, engine.open(), 0, IDS, Rank(SamplingParams(0.5), num_top=1, ids=[4]))
    assert again.distribution is not None
    assert fresh.distribution is not None
    assert np.array_equal(again.distribution.ids, fresh.distribution.ids)
    np.testing.assert_allclose(again.distribution.logprobs, fresh.distribution.logprobs, atol=1e-5)


def test_news_is_never_answered_from_what_was_kept(
    model: tuple[PreTrainedModel, Path], engine: Engine
) -> None:
    sequence = engine.open()
    ask(engine, sequence, 0, IDS, Rank(None))
    for start, tokens in ((len(IDS), [3]), (len(IDS), [4]), (len(IDS), []), (2, [8])):
        ids = [*engine.ids(sequence)[:start], *tokens]
        found = ask(engine, sequence, start, tokens, Rank(None)).distribution
        assert found is not None
        np.testing.assert_allclose(np.exp(found.logprobs), law_of(model[0], ids, None), atol=1e-6)


def test_nothing_is_kept_of_a_closed_sequence(engine: Engine) -> None:
    sequence = engine.open()
    ask(engine, sequence, 0, IDS, Rank(None))
    assert sequence in engine._rows
    engine.close(sequence)
    engine.step()
    assert not engine._rows


def test_ids_that_the_model_lacks_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="token ids must be"):
        engine.submit(Work(engine.open(), 0, IDS, Rank(None, ids=[VOCAB_SIZE])))


def test_a_rank_scores_what_it_reads_and_the_draw_after_it_takes_no_pass(
    model: tuple[PreTrainedModel, Path],
) -> None:
    engine = make_engine(model[1], max_batch_tokens=3)  # the scored stretch comes in chunks
    sequence = engine.open()
    told = ask(engine, sequence, 0, IDS, Rank(None, num_top=1, num_scored=len(IDS) - 1))
    with torch.inference_mode():
        rows = torch.log_softmax(model[0](torch.tensor([IDS])).logits[0].double(), -1)
    expected = [float(rows[i, token]) for i, token in enumerate(IDS[1:])]
    np.testing.assert_allclose(told.scored, expected, atol=1e-5)
    assert told.num_passes == 3

    def draw(sequence: int, start: int, tokens: list[int]) -> Output:
        judge = lambda token: Verdict.KEEP_AND_STOP  # noqa: E731
        return ask(engine, sequence, start, tokens, Sample(SamplingParams(), 3, 0, judge))

    drawn, fresh = draw(sequence, len(IDS), []), draw(engine.open(), 0, IDS)
    assert (drawn.num_passes, drawn.tokens) == (0, fresh.tokens)
    engine.check_integrity()
    again, fresh = (
        draw(sequence, len(IDS) + 1, []),
        draw(engine.open(), 0, engine.ids(sequence)[: len(IDS) + 1]),
    )
    assert again.num_passes == 1
    assert again.tokens[0].token == fresh.tokens[0].token


def test_a_score_tells_the_models_own_law_beside_the_one_asked_for(
    model: tuple[PreTrainedModel, Path],
) -> None:
    engine = make_engine(model[1], max_batch_tokens=2)
    law = SamplingParams(0.5)
    both = ask(engine, engine.open(), 0, IDS, Score(2, law, num_scored=5))
    own = ask(engine, engine.open(), 0, IDS, Score(5))
    warped = ask(engine, engine.open(), 0, IDS, Score(2, law))
    np.testing.assert_allclose(both.scored, [t.logprob for t in own.tokens], atol=1e-5)
    np.testing.assert_allclose(
        [t.logprob for t in both.tokens], [t.logprob for t in warped.tokens], atol=1e-5
    )
    assert own.scored == []


@pytest.mark.parametrize("max_batch_tokens", [512, 3])
def test_of_many_positions_each_is_told_in_the_passes_of_a_prefill(
    model: tuple[PreTrainedModel, Path], max_batch_tokens: int
) -> None:
    engine = make_engine(model[1], max_batch_tokens=max_batch_tokens)
    sequence = engine.open()
    engine.submit(Work(sequence, 0, IDS, Rank(None, num_positions=5)))
    outputs: list[Output] = []
    while engine.has_work():
        outputs += engine.step()
    assert [output.end for output in outputs] == [None] * 4 + [WorkEnd.DONE]
    assert sum(output.num_passes for output in outputs) == -(-len(IDS) // max_batch_tokens)
    for length, output in enumerate(outputs, len(IDS) - 4):
        assert output.distribution is not None
        law = law_of(model[0], IDS[:length], None)
        np.testing.assert_allclose(np.exp(output.distribution.logprobs), law, atol=1e-6)
    again = ask(engine, sequence, len(IDS), [], Rank(None))  # the last row is kept
    assert again.num_passes == 0
    engine.check_integrity()


@pytest.mark.parametrize("num_positions", [0, len(IDS) + 1])
def test_positions_that_a_sequence_lacks_are_refused(engine: Engine, num_positions: int) -> None:
    with pytest.raises(InvalidRequest, match="1 to 7 positions"):
        engine.submit(Work(engine.open(), 0, IDS, Rank(None, num_positions=num_positions)))
