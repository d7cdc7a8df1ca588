"""A model split over processes says what it says in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.engine.base import Chunk
from cluster.engine.engine import Engine
from cluster.engine.rows import HeadRows
from cluster.engine.runner import PagedRunner
from cluster.engine.split import SplitRunner
from cluster.engine.types import SamplingParams, Score, Work
from deployments.processes import descendants

from .factories import (
    ask,
    greedy,
    make_engine,
    make_ids,
    make_model,
    plain_greedy,
    plain_logprobs,
    run,
    save_model,
)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder, others = tmp_path_factory.mktemp("split"), descendants()
    save_model("llama", folder)
    engine = make_engine(folder, num_shards=2, num_threads=1, max_batch_tokens=24)
    yield engine
    engine.shut_down()
    assert descendants() <= others


def test_each_process_holds_its_part_of_weights_and_cache(
    split: Engine, llama_folder: Path
) -> None:
    runner = split._runner
    assert isinstance(runner, SplitRunner)
    assert isinstance(runner._runner, PagedRunner)
    rows = runner._runner._rows[0]
    assert isinstance(rows, HeadRows)
    assert (rows.num_heads, rows.is_joined) == (2, True)  # keys and values of 1 head of 2
    layer = runner._runner._model.get_decoder().layers[0]
    assert layer.self_attn.q_proj.weight.to_local().shape == (16, 32)
    assert layer.mlp.down_proj.weight.to_local().shape == (32, 24)
    assert runner.num_pages == make_engine(llama_folder)._runner.num_pages  # of the same memory


def test_tokens_are_those_of_one_process_and_of_plain_transformers(
    split: Engine, llama_folder: Path
) -> None:
    model, whole = make_model("llama"), make_engine(llama_folder, max_batch_tokens=24)
    prompts = [make_ids(num, seed=num) for num in (1, 40, 2, 17, 33, 16)]
    sampling = {"params": SamplingParams(temperature=0.9, top_p=0.95), "seed": 5}
    for changes in ({}, sampling):
        told = []
        for engine in (split, whole):
            works = [Work(engine.open(), 0, prompt, greedy(9, **changes)) for prompt in prompts]
            told.append([result.ids for result in run(engine, works)])
        assert told[0] == told[1]
        if not changes:
            assert told[0] == [plain_greedy(model, prompt, 9) for prompt in prompts]


def test_logits_are_those_of_plain_transformers(split: Engine) -> None:
    ids = make_ids(41)
    pages = list(range(-(-len(ids) // split._runner.page_size)))
    logits = split._runner.forward([Chunk(99, 0, ids, pages, num_logits=len(ids))])
    with torch.inference_mode():
        expected = make_model("llama")(torch.tensor([ids]), use_cache=False).logits[0]
    assert float((logits - expected).norm() / expected.norm()) < 1e-5


def test_pages_are_shared_and_copied_alike_everywhere(split: Engine) -> None:
    model, prefix = make_model("llama"), make_ids(29)
    first, second = split.open(), split.open()
    ask(split, first, 0, [*prefix, 1, 2, 3], greedy(4))
    split.close(first)
    result = ask(split, second, 0, [*prefix, 5, 6], greedy(4))
    assert result.num_cached >= len(prefix)  # some of them rows copied from another's page
    assert result.ids == plain_greedy(model, [*prefix, 5, 6], 4)


def test_scores_are_those_of_plain_transformers(split: Engine) -> None:
    ids = make_ids(40, seed=3)
    scored = ask(split, split.open(), 0, ids, Score(30))
    expected = plain_logprobs(make_model("llama"), ids)
    for i, token in enumerate(scored.tokens, len(ids) - 30):
        assert token.logprob == pytest.approx(float(expected[i - 1, ids[i]]), abs=1e-5)
