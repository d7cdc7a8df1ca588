"""Where a checkpoint's layers are, told by the names of its tensors: `model.layers.7.mlp…`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import Unsupported

_NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.+)")
_INPUT_PARTS = ("embed", "wte", "wpe")  # of names of what comes before the first layer
_OUTPUT_PARTS = ("embed_out",)
NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Layout:
    """The tensors of each layer, and those outside; names are in the checkpoint's order."""

    stack: str  # such as model.layers
    layers: tuple[tuple[str, ...], ...]  # by layer, what follows its number in each name
    outside: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Layout:
        """The layers are the largest numbered group; numbers within them (experts) are not."""
        names = list(names)
        matches = {name: match for name in names if (match := _NUMBERED.fullmatch(name))}
        counts = Counter(match[1] for match in matches.values())
        stack = counts.most_common(1)[0][0] if counts else ""
        layers: dict[int, list[str]] = {}
        for match in matches.values():
            if match[1] == stack:
                layers.setdefault(int(match[2]), []).append(match[3])
        outside = [n for n in names if n not in matches or matches[n][1] != stack]
        return cls(stack, tuple(tuple(layers.get(i, ())) for i in _upto(layers)), tuple(outside))

    def name(self, layer: int, part: str) -> str:
        return f"{self.stack}.{layer}.{part}"


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers is of the input side: embeddings."""
    is_input = any(part in name for part in _INPUT_PARTS)
    return is_input and not any(part in name for part in _OUTPUT_PARTS)


def stacked_config(
    config: Mapping[str, Any], taken: Sequence[tuple[Mapping[str, Any], int]], num_layers: int
) -> dict[str, Any]:
    """A configuration for `taken` layers, each by the configuration it comes from and its number.

    `num_layers` is how many `config` has. Lists with a value per layer are put together again.
    """
    result = dict(config)
    key = next((key for key in NUM_LAYERS if config.get(key) == num_layers), None)
    if key is None:
        message = f"config.json does not say that it has {num_layers} layers; nothing is stacked"
        raise Unsupported("LAYERS_UNKNOWN", message, field="slices")
    result[key] = len(taken)
    for name, value in config.items():
        if isinstance(value, list) and len(value) == num_layers and "layer" in name:
            result[name] = [source[name][layer] for source, layer in taken]
    return result


def _upto(layers: Mapping[int, object]) -> range:
    return range(max(layers) + 1) if layers else range(0)
