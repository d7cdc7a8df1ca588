"""What the engine needs of a model: the contract of `PagedRunner` and `CachedRunner`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from cluster.engine.pool import Copy

MAX_EXTENSION_TOKENS = 16  # what counts as a short chunk; costs hardly more than one token


@dataclass(slots=True)
class Chunk:
    """A stretch of one sequence to feed through the model in one forward pass."""

    sequence: int
    start: int  # position of the first id; the rows of all positions before it are valid
    ids: list[int]
    pages: list[int]  # hold the rows of all positions up to the last id, in order
    num_logits: int  # logits are wanted for this many of its last ids


class Runner(Protocol):
    """A model with room for cached state. The engine's page pool decides what is in that room."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_context(self) -> int:
        """The longest sequence the model can take."""
        ...

    @property
    def num_pages(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    @property
    def shares_rows(self) -> bool:
        """Whether sequences may hold pages in common, and `copy` may be called."""
        ...

    @property
    def states(self) -> Tensor | None:
        """[sum of num_logits, hidden size]: what the last pass's logits were made from.

        None for a runner that cannot tell. The next pass may overwrite them.
        """
        ...

    @property
    def is_alive(self) -> bool:
        """Whether passes can be run; once False, False for ever."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Feed all chunks in one pass: logits [sum of num_logits, vocab_size], in chunk order.

        The next pass may overwrite them.
        """
        ...

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy rows, one copy after the other."""
        ...

    def truncate(self, sequence: int, num_tokens: int, next_id: int) -> int:
        """Cut the state to at most `num_tokens`, to go on with `next_id`; gives what is left."""
        ...

    def drop(self, sequence: int) -> None:
        """Free what the sequence holds besides its pages."""
        ...

    def close(self) -> None:
        """End what it started; it is not used after."""
        ...


def vocab_size_of(model: PreTrainedModel) -> int:
    """How many token ids the model can read."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]
