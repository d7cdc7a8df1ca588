"""What rounding does to a real model: SmolLM2, its weights packed, its cache in bfloat16."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from cluster.engine.base import Chunk
from cluster.engine.engine import Engine
from cluster.engine.product import Halves, has_halves
from cluster.engine.reading import read_model
from cluster.engine.runner import PagedRunner

from .factories import ask, greedy, make_engine, plain_greedy

FOLDERS = sorted(Path.home().glob(".cache/cuvee/models/smollm2-*"))[:1]
TEXT = (
    "The river rose in the night and took the lower bridge with it, so that the doctor, who had "
    "promised to be in the village before noon, came by the hill road instead and was late. "
    "Nobody blamed him. The baker's wife had been through worse, she said, and the child, a girl, "
    "was already asleep in a drawer by the stove when he knocked the mud from his boots."
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FOLDERS, reason="cuvee models fetch smollm2"),
    pytest.mark.skipif(not has_halves(), reason="needs a processor with packed float16 products"),
]


def logits_of(engine: Engine, ids: list[int]) -> Tensor:
    """In three chunks, so that most of it is read from the cache."""
    runner, third = engine._runner, len(ids) // 3
    pages = list(range(len(ids) // runner.page_size + 1))
    ends = (0, third, 2 * third, len(ids))
    parts = [
        Chunk(0, begin, ids[begin:end], pages, num_logits=end - begin)
        for begin, end in pairwise(ends)
    ]
    return torch.cat([runner.forward([part]) for part in parts])


def divergence(mine: Tensor, theirs: Tensor) -> float:
    """Mean Kullback-Leibler divergence per token, in nats."""
    p, q = torch.log_softmax(theirs.double(), -1), torch.log_softmax(mine.double(), -1)
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def test_packed_weights_and_a_rounded_cache_on_a_real_model() -> None:
    folder = FOLDERS[0]
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    model = read_model(folder, "float32", torch.device("cpu")).model
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    packed = make_engine(folder, kv_memory_bytes=64 << 20)
    assert isinstance(packed._runner, PagedRunner)
    assert isinstance(packed._runner._fused._head, Halves)  # type: ignore[union-attr]
    logits = logits_of(packed, ids)
    assert divergence(logits, expected) < 1e-8
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    assert ask(packed, packed.open(), 0, ids, greedy(24)).ids == plain_greedy(model, ids, 24)
    rounded = make_engine(folder, kv_memory_bytes=64 << 20, kv_dtype="bfloat16")
    logits = logits_of(rounded, ids)
    assert 1e-8 < divergence(logits, expected) < 2e-3
    agreed = (logits.argmax(-1) == expected.argmax(-1)).float().mean()
    assert float(agreed) > 0.95
