"""Muon in the precision of the device: momentum, then an orthogonal step, for hidden matrices.

Muon (Keller Jordan, 2024) replaces each matrix's update by the nearest orthogonal matrix, found by
a few Newton-Schulz iterations. `torch.optim.Muon` iterates in bfloat16, one matrix at a time: on a
CPU without bfloat16 a step took 20 times longer than this one, longer than the gradients. Here
equal shapes go as one batch, in float32 on a CPU. The scale is `match_rms_adamw`'s, so learning
rates carry over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: fast, lands near 1 and not on it


def orthogonalized(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Push every matrix's singular values towards 1 and keep its singular vectors."""
    a, b, c = _COEFFICIENTS
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    found: Tensor = (x.mT if is_tall else x).to(matrices.dtype)
    return found


class Muon(torch.optim.Optimizer):
    """For matrices inside the model only; embeddings and norms belong to AdamW."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter, batched by shape."""
        assert closure is None, "the loss is computed outside"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                update = orthogonalized(self._nesterov(parameters, group["momentum"]))
                update *= 0.2 * max(shape) ** 0.5  # the RMS of a typical AdamW update
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(update.unbind()), alpha=-group["lr"])

    def _nesterov(self, parameters: list[Tensor], momentum: float) -> Tensor:
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        state = self.state[parameters[0]]  # one buffer for the whole batch
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradients)
        buffer: Tensor = state["momentum"]
        buffer.lerp_(gradients, 1 - momentum)
        return gradients.lerp(buffer, momentum)
