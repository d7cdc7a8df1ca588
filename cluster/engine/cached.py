"""The fallback: one transformers cache per sequence, one forward pass per chunk. Slow, and right.

For architectures with recurrent state or with attention of their own. Pages are only counted
here, as a measure of memory; nothing lies in them and nothing is shared. A recurrent state cannot
be cut, so a sequence cut by more than one token is computed again from its ids; one token less is
no problem, because the last logits are kept: that is what drawing a second time from the same
state needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cluster.engine.base import Chunk, vocab_size_of
from cluster.engine.pool import Copy
from cluster.errors import Unsupported

_PAGE_SIZE = 16


@dataclass(slots=True)
class _State:
    cache: Any  # whatever the model hands out and takes back
    length: int
    last_id: int
    last_logits: Tensor  # [1, vocab_size], after the last id
    rewound: bool = False  # the last id will be fed again: answer from `last_logits`


class CachedRunner:
    """Carries out `Runner` with one cache per sequence."""

    shares_rows = False
    is_alive = True
    states = None
    page_size = _PAGE_SIZE

    def __init__(self, model: PreTrainedModel, *, kv_memory_bytes: int, max_context: int) -> None:
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = next(
            (name for name in ("past_key_values", "cache_params") if name in parameters), ""
        )
        if not self._cache_name:
            raise Unsupported("NO_CACHE", f"{type(model).__name__} has no cache to go on from")
        self._takes_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._model = model
        self._device = model.device
        self._states: dict[int, _State] = {}
        self.vocab_size = vocab_size_of(model)
        self.max_context = max_context
        self.page_bytes = self._measure_page_bytes()
        self.num_pages = kv_memory_bytes // self.page_bytes

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        return torch.cat([self._feed(chunk) for chunk in chunks])

    def copy(self, copies: Sequence[Copy]) -> None:
        raise AssertionError("nothing is shared here")

    def truncate(self, sequence: int, num_tokens: int, next_id: int) -> int:
        state = self._states.get(sequence)
        if state is None:
            return 0
        num_surplus = state.length - num_tokens
        state.rewound = num_surplus == 1 and next_id == state.last_id
        if num_surplus == 0 or state.rewound:
            return num_tokens
        layers = getattr(state.cache, "layers", [None])
        if not all(type(layer).__name__ == "DynamicLayer" for layer in layers) or not num_tokens:
            self.drop(sequence)
            return 0
        state.cache.crop(-num_surplus)
        state.length, state.last_id = num_tokens, -1
        return num_tokens

    def drop(self, sequence: int) -> None:
        self._states.pop(sequence, None)

    def close(self) -> None:
        """Nothing was started."""

    def _feed(self, chunk: Chunk) -> Tensor:
        """Logits [num_logits, vocab_size] of one chunk."""
        state = self._states.get(chunk.sequence)
        ids, known = chunk.ids, None
        if state is not None and state.rewound:
            assert ids[0] == state.last_id, chunk.sequence
            ids, known = ids[1:], state.last_logits
            state.rewound = False
        assert (state.length if state else 0) == chunk.start + (known is not None), chunk.sequence
        if ids:
            logits = self._call(chunk.sequence, state, ids, max(1, chunk.num_logits))
            known = logits if known is None else torch.cat([known, logits])
        assert known is not None
        return known[known.shape[0] - chunk.num_logits :]

    def _call(self, sequence: int, state: _State | None, ids: list[int], num_logits: int) -> Tensor:
        """Feed ids after the state and keep what comes of it; gives their last logits."""
        start = state.length if state else 0
        kwargs: dict[str, Any] = {"use_cache": True}
        if state is not None:
            kwargs[self._cache_name] = state.cache
        if self._takes_positions:
            end = start + len(ids)
            kwargs["position_ids"] = torch.arange(start, end, device=self._device)[None]
        num_logits = min(num_logits, len(ids))
        if self._keeps_logits:
            kwargs["logits_to_keep"] = num_logits
        output = self._model(input_ids=torch.tensor([ids], device=self._device), **kwargs)
        logits: Tensor = output.logits[0, -num_logits:]
        cache = getattr(output, self._cache_name)
        self._states[sequence] = _State(cache, start + len(ids), ids[-1], logits[-1:].clone())
        return logits

    @torch.inference_mode()
    def _measure_page_bytes(self) -> int:
        """Memory per page of tokens; a state of fixed size counts as if it grew."""
        self._call(-1, None, [0] * (2 * _PAGE_SIZE), 1)
        cache = self._states.pop(-1).cache
        num_bytes = sum(tensor.nbytes for tensor in _tensors(cache, set()))
        return max(1, num_bytes // 2)


def _tensors(thing: object, seen: set[int]) -> list[Tensor]:
    """All tensors within a cache object, whatever its class."""
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, dict):
        parts: list[object] = list(thing.values())
    elif isinstance(thing, list | tuple):
        parts = list(thing)
    elif type(thing).__module__.startswith("transformers"):
        parts = list(vars(thing).values())
    else:
        return []
    return [tensor for part in parts for tensor in _tensors(part, seen)]
