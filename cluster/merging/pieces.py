"""Tensors of any size, a piece at a time: rules hold float32 copies of a piece alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 1 << 18  # elements: 1 MiB, which caches hold; random draws depend on it, so it stays

Pieces = Iterator[Tensor]  # float32, one-dimensional, in order: together one whole tensor


def pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The same stretch of every tensor as float32, stretch by stretch; not to be written to."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    for begin in range(0, flat[0].numel(), PIECE):
        yield [tensor[begin : begin + PIECE].float() for tensor in flat]


def assemble(parts: Pieces, like: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The whole tensor, of the shape of `like`.

    None when a number is not finite, also where `dtype` has no room for it.
    """
    whole = torch.empty(like.shape, dtype=dtype)
    flat, begin, most = whole.view(-1), 0, torch.finfo(dtype).max
    for part in parts:
        low, high = torch.aminmax(part)
        if not (low >= -most and high <= most):  # no comparison holds for what is no number
            return None
        flat[begin : begin + part.numel()] = part
        begin += part.numel()
    return whole
