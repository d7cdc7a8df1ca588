"""How long a forward pass takes, from a device's data sheet and a model's shape.

A pass reads all weights once, computes two operations per weight and token, and reads the cached
state of every sequence that takes part. What is assumed is how much of the data sheet's peak is
reached; none of it was measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

_BYTES_PER_WEIGHT = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its data sheet."""

    name: str
    memory_bytes_per_s: float
    flops: float  # dense bfloat16, per second


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's size."""

    name: str
    num_weights: float
    cache_bytes_per_token: float


@dataclass(frozen=True, slots=True)
class Timing:
    """What a pass takes: so much, and more for each token fed and each sequence in it."""

    name: str
    step_s: float
    token_s: float
    sequence_s: float

    def pass_s(self, num_tokens: int, num_sequences: int) -> float:
        """The length of one pass."""
        return self.step_s + num_tokens * self.token_s + num_sequences * self.sequence_s


def timing_of(
    device: Device,
    shape: Shape,
    *,
    memory_efficiency: float = 0.7,
    compute_efficiency: float = 0.5,
    launch_s: float = 0.0005,
    context_tokens: int = 1000,
) -> Timing:
    """A pass of this model on this device, with sequences of so many tokens on average."""
    bytes_per_s = memory_efficiency * device.memory_bytes_per_s
    return Timing(
        name=f"{shape.name} on {device.name}",
        step_s=launch_s + _BYTES_PER_WEIGHT * shape.num_weights / bytes_per_s,
        token_s=2 * shape.num_weights / (compute_efficiency * device.flops),
        sequence_s=shape.cache_bytes_per_token * context_tokens / bytes_per_s,
    )


H200 = Device("H200", 4.8e12, 989e12)
L4 = Device("L4", 300e9, 121e12)

# Weights and cache of two published shapes: 28 and 32 layers, 8 key-value heads of 128.
MODEL_3B = Shape("3B", 3.2e9, 2 * 2 * 28 * 8 * 128)
MODEL_8B = Shape("8B", 8.0e9, 2 * 2 * 32 * 8 * 128)

TIMINGS = {
    "none": Timing("nothing at all", 0.0, 0.0, 0.0),
    "l4-3b": timing_of(L4, MODEL_3B),
    "h200-8b": timing_of(H200, MODEL_8B),
}
