"""Small random checkpoints that are relatives of each other, and recipes over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from cluster.merging.merge import Merged, merge
from cluster.spec import RecipeSpec

_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def make_checkpoint(folder: Path, *, seed: int = 0, kind: str = "llama", **changes: Any) -> Path:
    """A random model; a classifier where `num_labels` is given."""
    auto = AutoModelForSequenceClassification if "num_labels" in changes else AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto.from_config(AutoConfig.for_model(kind, **{**_SIZES, **changes}))
    model.save_pretrained(folder)
    return folder


def make_relative(
    folder: Path, ancestor: Path, *, seed: int, dtype: torch.dtype | None = None
) -> Path:
    """The ancestor with a little noise on every weight, as if it had been tuned."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    (folder / "config.json").write_bytes((ancestor / "config.json").read_bytes())
    tensors = {
        name: (tensor.float() + 0.05 * torch.randn(tensor.shape, generator=generator)).to(
            dtype or tensor.dtype
        )
        for name, tensor in tensors_of(ancestor).items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def make_family(folder: Path, num: int = 2, **changes: Any) -> tuple[Path, list[Path]]:
    """An ancestor and so many relatives."""
    base = make_checkpoint(folder / "base", **changes)
    return base, [make_relative(folder / f"m{i}", base, seed=i + 1) for i in range(num)]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def recipe(content: str | Mapping[str, Any], **models: Path) -> RecipeSpec:
    """A recipe from YAML or data, with `$name` standing for a folder."""
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content))
    for name, path in models.items():
        text = text.replace(f"${name}", str(path))
    return RecipeSpec.model_validate(yaml.safe_load(text))


def merged(out: Path, content: str | Mapping[str, Any], **models: Path) -> Merged:
    return merge(recipe(content, **models), out)
