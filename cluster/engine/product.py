"""Linear layers over one input as one product, laid out as the processor multiplies it fastest.

On processors, float32 weights that are float16 numbers (those of checkpoints in bfloat16 are, but
for the tiniest) are packed as such, and multiplied in float32: each is read as half the bytes and
counts the same. Everything else is one matrix, of which the layers' own become parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MAX_HALF_ERROR = 2.0**-25  # half the distance of float16's smallest numbers
_MIN_HALVES = 1 << 14  # numbers in a matrix; smaller ones are all call and no reading
_MAX_COLUMNS = 1 << 22  # numbers in a matrix that lies by columns

_PACKED_PRODUCT = torch.ops.quantized.linear_dynamic_fp16.default._handle


@dataclass(slots=True)
class Plain:
    """One matrix in the model's own numbers."""

    weight: Tensor  # [out, in], by rows or by columns
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@dataclass(slots=True)
class Halves:
    """One matrix packed in float16; input, sums and output are float32."""

    packed: Any
    layers: Sequence[nn.Linear]  # whose weights it took the place of

    def __call__(self, x: Tensor) -> Tensor:
        # as torch.ops calls it, less 20 us of looking whether the packed matrix is a fake
        out: Tensor = torch._C._dispatch_call_boxed(_PACKED_PRODUCT, x, self.packed)
        return out

    def restore(self) -> None:
        """Give the layers their weights again."""
        weight, _ = torch.ops.quantized.linear_unpack_fp16(self.packed)
        _share(weight, self.layers)


Product = Plain | Halves


def product(layers: Sequence[nn.Linear]) -> Product:
    """[T, in] -> [T, sum of the layers' outs].

    The layers' weights become parts of it, or empty where it is packed: nothing is held twice.
    """
    weight = torch.cat([layer.weight for layer in layers]).detach()
    has_bias = layers[0].bias is not None
    bias = torch.cat([layer.bias for layer in layers]).detach() if has_bias else None
    if weight.numel() >= _MIN_HALVES and has_halves() and are_halves(weight):
        packed = Halves(torch.ops.quantized.linear_prepack_fp16(weight, bias), layers)
        for layer in layers:
            layer.weight.data = weight.new_empty(0)
        return packed
    if _goes_by_columns(weight):
        weight = weight.t().contiguous().t()
    _share(weight, layers)
    return Plain(weight, bias)


def _share(weight: Tensor, layers: Sequence[nn.Linear]) -> None:
    sizes = [layer.out_features for layer in layers]
    for layer, part in zip(layers, torch.split(weight, sizes), strict=True):
        layer.weight.data = part


def _goes_by_columns(weight: Tensor) -> bool:
    """Whether a float32 matrix [out, in] on a processor is multiplied faster that way.

    Measured (0022): a vector times a wide one takes three quarters of the time, and eight rows as
    long or longer; times a tall one, or a vocabulary's at eight rows, longer.
    """
    is_single = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_single and weight.shape[0] > weight.shape[1] and weight.numel() <= _MAX_COLUMNS


def has_halves() -> bool:
    """Whether this processor multiplies by packed float16."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def are_halves(weight: Tensor) -> bool:
    """Whether float32 weights on a processor lose nothing as float16.

    Below its normal numbers float16 is even finer than float32's rounding of a sum of such
    products, so those need not be met exactly.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    return float((weight.half().float() - weight).abs().max()) <= _MAX_HALF_ERROR
