"""Which changes of a tensor are kept: the largest, or some drawn at random."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cluster.merging.pieces import PIECE, Pieces

_BINS = 1 << 16
_MOST = (1 << 31) - 1  # no number's bits are more


class Largest:
    """Keeps exactly int(density · size) changes, the largest; of equal ones the first.

    The bits of a number without its sign are in the numbers' own order, so two counts of 16 bits
    each find the smallest change that is kept, in memory for a piece. Above density 0
    at least one is kept. `changes` gives the same
    changes each time it is called; `next` is for the same pieces in the same order.
    """

    def __init__(self, changes: Callable[[], Pieces], size: int, density: float) -> None:
        self._keeps_all = density >= 1 or size == 0
        if self._keeps_all:
            return
        num_kept = max(1, int(density * size)) if density > 0 else 0
        high, rest = _bin_of(changes, num_kept, lambda bits: bits >> 16)
        low, rest = _bin_of(changes, rest, lambda bits: (bits & (_BINS - 1))[(bits >> 16) == high])
        self._least = (high << 16) | low if num_kept else _MOST
        self._num_equal = (
            rest if num_kept else 0
        )  # of those equal to the least, how many more are kept

    def next(self, change: Tensor) -> Tensor:
        """Whether each change of the next piece is kept [m], bool."""
        if self._keeps_all:
            return torch.ones(change.numel(), dtype=torch.bool)
        bits = _bits(change)
        kept = bits > self._least
        equal = bits == self._least
        if self._num_equal:
            kept |= equal & (equal.cumsum(0) <= self._num_equal)
            self._num_equal -= min(self._num_equal, int(equal.sum()))
        return kept


def _bin_of(
    changes: Callable[[], Pieces], wanted: int, key: Callable[[Tensor], Tensor]
) -> tuple[int, int]:
    """The bin with the `wanted`-th largest change, and which of its own that one is, from 1."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for change in changes():
        counts += torch.bincount(key(_bits(change)), minlength=_BINS)
    above = counts.flip(0).cumsum(0)  # changes in this bin or a higher one
    place = int(torch.searchsorted(above, wanted))
    return _BINS - 1 - place, wanted - (int(above[place - 1]) if place else 0)


def _bits(change: Tensor) -> Tensor:
    return change.abs().view(torch.int32)


def random_masks(density: float, seed: int, tensor: str, model: int) -> Iterator[Tensor]:
    """Piece by piece for ever: each change is kept with probability `density` [PIECE], bool.

    The draws follow from the recipe's seed, the tensor's name and the model's place: neither the
    order of tensors nor what else is merged changes them.
    """
    text = f"{seed}\0{model}\0{tensor}".encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    generator = torch.Generator().manual_seed(number >> 1)
    while True:
        yield torch.rand(PIECE, generator=generator) < density
