"""A step waits for the device once: nothing of a pass or a draw is read on the host before.

Run on torch's `meta` device, whose tensors have no content, so that whatever would make the host
wait for a GPU raises here, but for the one `tolist`, which gives zeros. A copy to the device that
is not asked for as non-blocking would wait, too, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cluster.engine import attention
from cluster.engine.base import Chunk
from cluster.engine.engine import Engine
from cluster.engine.types import Doubt, Sample, SamplingParams, Score, Work, WorkEnd

from .factories import make_ids, make_model, make_varlen_runner, run, stop_after
from .tape import varlen_kernel

META = torch.device("meta")


class Lists(TorchFunctionMode):
    """Refuses host lists made on the device: they come from memory that is not pinned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            assert torch.device(kwargs.get("device") or "cpu") != META, "a blocking copy"
        return func(*args, **kwargs)


class Waits(TorchDispatchMode):
    """Counts what moves to the device; refuses what would wait for it to get there."""

    def __init__(self) -> None:
        super().__init__()
        self.num_moves = 0
        self.num_waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        is_there = any(leaf.device == META for leaf in made)
        if name.startswith("aten::index"):
            assert not any(leaf.dtype == torch.bool for leaf in given[1:]), "a mask as an index"
        is_copy = name.startswith(("aten::to.", "aten::_to_copy", "aten::copy_"))
        if is_copy and is_there and any(leaf.device != META for leaf in given):
            names = [argument.name for argument in func._schema.arguments]
            assert (dict(zip(names, args, strict=False)) | kwargs)["non_blocking"], (
                "a blocking copy"
            )
            self.num_moves += 1
        return result


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """With a `tolist` that gives zeros, counted."""
    counter, plain = Waits(), Tensor.tolist

    def zeros(tensor: Tensor) -> Any:
        if tensor.device != META:
            return plain(tensor)
        counter.num_waits += 1
        return plain(torch.zeros(tensor.shape, dtype=tensor.dtype))

    monkeypatch.setattr(Tensor, "tolist", zeros)
    monkeypatch.setattr(attention, "varlen_attn", varlen_kernel)
    return counter


def make_engine(kind: str, *, replays: bool) -> Engine:
    model = make_model(kind).to(META, torch.bfloat16)
    runner = make_varlen_runner(model, num_pages=80, page_size=4)
    if replays:
        runner.use_graphs(lambda run: run, 16)
    return Engine(runner, max_batch_tokens=64, min_shared_tokens=100)


def draw(temperature: float = 1.0, **changes: Any) -> Sample:
    laws = {"top_k", "top_p", "min_p"}
    law = {name: value for name, value in changes.items() if name in laws}
    others = {name: value for name, value in changes.items() if name not in laws}
    params = SamplingParams(temperature=temperature, **law)
    return Sample(params, seed=1, first_position=0, judge=stop_after(3), **others)


def all_ids(ids: Sequence[int]) -> bytes:
    return bytes([255] * 13)


WANTS: dict[str, list[dict[str, Any]]] = {
    "plain": [{}, {}],
    "greedy beside a draw": [{"temperature": 0.0}, {"temperature": 0.7}],
    "truncated": [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1, "top_p": 0.5, "top_k": 20}],
    "with candidates": [{"num_top": 4}, {}, {"num_top": 2}],
    "banned": [{"banned": (3, 5), "banned_before": 9}, {}],
    "allowed": [{"allowed": all_ids}, {}],
    "in doubt": [{"doubt": Doubt("entropy", 0.5, bool)}, {}],
    "by id": [{"by_id": True}, {}],
}


@pytest.mark.parametrize("wanted", WANTS)
@pytest.mark.parametrize("replays", [False, True])
def test_a_step_that_draws_waits_once(wanted: str, replays: bool, waits: Waits) -> None:
    engine = make_engine("llama", replays=replays)
    for num, want in zip((9, 3, 20), WANTS[wanted], strict=False):
        engine.submit(Work(engine.open(), 0, make_ids(num), draw(**want)))
    with waits, Lists():
        while engine.has_work():
            engine.step()
            assert waits.num_waits == engine.counts.forward_passes
    assert waits.num_waits >= 3


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text", "gpt2", "mixtral"])
@pytest.mark.parametrize("replays", [False, True])
def test_a_pass_is_told_all_in_one_move_and_read_by_nobody(
    kind: str, replays: bool, waits: Waits
) -> None:
    """A prefill, whose logits nobody wants, waits for nothing at all."""
    engine = make_engine(kind, replays=replays)
    runner, ids = engine._runner, make_ids(9)
    with waits, Lists():
        runner.forward([Chunk(0, 0, ids, [0, 1, 2], 0), Chunk(1, 0, ids[:3], [3], 1)])
    assert (waits.num_moves, waits.num_waits) == (1, 0)


def test_scores_wait_once(waits: Waits) -> None:
    engine = make_engine("llama", replays=True)
    works = [Work(engine.open(), 0, make_ids(12), Score(11)) for _ in range(2)]
    with waits, Lists():
        results = run(engine, works)
    assert [result.end for result in results] == [WorkEnd.DONE] * 2
    assert waits.num_waits == engine.counts.forward_passes
