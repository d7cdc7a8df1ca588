"""Many random numbers from the key of one draw: SplitMix64's stream, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.randomness import GOLDEN, MIX_1, MIX_2


def exponentials(keys: Sequence[int], num: int, device: torch.device) -> Tensor:
    """[B, num] float64 draws of the unit exponential law, -log(u) of `uniforms`."""
    return uniforms(keys, num, device).log_().neg_()


def uniforms(keys: Sequence[int], num: int, device: torch.device) -> Tensor:
    """[B, num] float64 in (0, 1): to_uniform(mix(key + (i + 1) * GOLDEN)), the same everywhere."""
    host = torch.tensor([_signed(key) for key in keys], pin_memory=device.type == "cuda")
    counters = torch.arange(1, num + 1, device=device) * _signed(GOLDEN)
    bits = host.to(device, non_blocking=True)[:, None] + counters
    bits ^= _shifted(bits, 30)
    bits *= _signed(MIX_1)  # wraps around at 64 bits, as it should
    bits ^= _shifted(bits, 27)
    bits *= _signed(MIX_2)
    bits ^= _shifted(bits, 31)
    return _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)


def _signed(bits: int) -> int:
    """64 bits as the integer that int64 tensors hold."""
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(bits: Tensor, num: int) -> Tensor:
    """A shift to the right that brings zeros in, not copies of the sign."""
    return (bits >> num).bitwise_and_(2 ** (64 - num) - 1)
