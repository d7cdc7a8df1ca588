"""A model without a model: the next token is a fixed function of all tokens before it.

It reads those tokens back from the rows it was told to write and copy, so an engine that loses,
mixes up or overwrites a row draws other tokens than `next_token`, or the function given instead,
says. Deterministic and fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cluster.engine.base import Chunk
from cluster.engine.pool import Copy


def next_token(ids: Sequence[int], vocab_size: int) -> int:
    """What `FakeRunner` finds likeliest after these tokens."""
    state = 0
    for token in ids:
        state = (state * 6364136223846793005 + token + 1442695040888963407) % 2**64
    return (state >> 33) % vocab_size


class FakeRunner:
    """Carries out `Runner` over a list of token ids, one per slot."""

    shares_rows = True
    is_alive = True
    states = None

    def __init__(
        self,
        *,
        vocab_size: int = 64,
        num_pages: int = 64,
        page_size: int = 4,
        max_context: int = 256,
        before_pass: Callable[[Sequence[Chunk]], None] = lambda chunks: None,
        likeliest: Callable[[Sequence[int]], int] | None = None,
        lead: float = 1.0,
    ) -> None:
        self.vocab_size = vocab_size
        self.num_pages = num_pages
        self.page_size = page_size
        self.max_context = max_context
        self._before_pass = before_pass  # may raise, to play a failing device
        self._likeliest = likeliest or (lambda ids: next_token(ids, vocab_size))
        self._lead = lead  # how far the likeliest token's logit is above the others'
        self._rows = [-1] * (num_pages * page_size)

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        self._before_pass(chunks)
        for chunk in chunks:
            for position, token in enumerate(chunk.ids, chunk.start):
                self._rows[self._slot(chunk, position)] = token
        likeliest = []
        for chunk in chunks:
            end = chunk.start + len(chunk.ids)
            ids = [self._rows[self._slot(chunk, position)] for position in range(end)]
            seen = range(end - chunk.num_logits + 1, end + 1)
            likeliest += [self._likeliest(ids[:num]) for num in seen]
        index = torch.tensor(likeliest, dtype=torch.int64)
        return torch.nn.functional.one_hot(index, self.vocab_size).float() * self._lead

    def copy(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            rows = self._rows[copy.source : copy.source + copy.num_rows]
            self._rows[copy.target : copy.target + copy.num_rows] = rows

    def truncate(self, sequence: int, num_tokens: int, next_id: int) -> int:
        return num_tokens

    def drop(self, sequence: int) -> None:
        pass

    def close(self) -> None:
        """Nothing was started."""

    def _slot(self, chunk: Chunk, position: int) -> int:
        return chunk.pages[position // self.page_size] * self.page_size + position % self.page_size
