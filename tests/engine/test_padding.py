"""Ids beyond the tokenizer's, for which padded embeddings have rows, are no tokens at all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from cluster.engine.engine import Engine
from cluster.engine.fake import FakeRunner
from cluster.engine.types import SamplingParams, Score, Work
from cluster.errors import InvalidRequest

from .factories import ask, greedy, make_engine, make_ids, make_model

NUM_IDS = 20


def make_padded(likeliest: int) -> Engine:
    """A model of 64 rows that always finds one of them likeliest, with 20 tokens."""
    runner = FakeRunner(vocab_size=64, likeliest=lambda ids: likeliest)
    return Engine(runner, num_ids=NUM_IDS)


def test_padding_is_not_drawn_even_if_it_is_likeliest() -> None:
    engine = make_padded(40)
    hot = greedy(200, params=SamplingParams(temperature=1.0), num_top=64)
    tokens = ask(engine, engine.open(), 0, [1], hot).tokens
    assert {token.token for token in tokens} == set(range(NUM_IDS))
    for token in tokens:
        assert [id for id, _ in token.top] == list(range(NUM_IDS))


def test_log_probabilities_sum_to_one_over_the_tokens() -> None:
    engine = make_padded(40)
    drawn = ask(engine, engine.open(), 0, [1], greedy(1)).tokens[0]
    scored = ask(engine, engine.open(), 0, [1, 2], Score(1)).tokens[0]
    assert drawn.logprob == scored.logprob == pytest.approx(-math.log(NUM_IDS))


def test_padding_is_refused_in_what_is_told() -> None:
    engine = make_padded(3)
    with pytest.raises(InvalidRequest, match="0 to 19"):
        engine.submit(Work(engine.open(), 0, [NUM_IDS], greedy(1)))


def test_a_model_with_fewer_rows_than_the_tokenizer_has_ids_keeps_its_own_size() -> None:
    assert Engine(FakeRunner(vocab_size=64), num_ids=100).vocab_size == 64


def test_a_real_model_gives_its_own_distribution_over_the_tokens(llama_folder: Path) -> None:
    engine = make_engine(llama_folder, num_ids=NUM_IDS)
    ids = [id % NUM_IDS for id in make_ids(12)]
    with torch.inference_mode():
        logits = make_model("llama")(torch.tensor([ids])).logits[0, -1]
    expected = torch.log_softmax(logits[:NUM_IDS], dim=-1)
    best = ask(engine, engine.open(), 0, ids, greedy(1, num_top=NUM_IDS)).tokens[0]
    assert best.token == int(expected.argmax())
    assert dict(best.top) == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-4)
