"""What each embedded model is: its shape, its share of the texts, its number of steps.

Sized for an hour of one CPU thread (see `embedded/README.md`): in one short trial of about equal
compute, 1.1 million parameters that saw more tokens beat 1.8 million that saw fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config

from cluster.models.byte_level import END_ID, PAD_ID

CONTEXT = 1024
BPE_ENTRIES = 2048
# A text starts where another has ended.
SPECIAL_IDS: dict[str, Any] = {
    "bos_token_id": END_ID,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
}
_SHARED = SPECIAL_IDS | {"max_position_embeddings": CONTEXT, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Recipe:
    """What one model is trained on, and for how long; every step sees as many tokens."""

    mix: Mapping[str, float]  # share of each style among the training sequences
    num_short_steps: int  # sequences of a quarter of the context: cheap, for a start
    num_long_steps: int  # sequences of the whole context, so that every position is trained
    tokens_per_step: int = 2048
    learning_rate: float = 0.01
    weight_decay: float = 0.1
    dropout: float = 0.0  # on what each layer adds; for a text that is soon known by heart
    ancestor: str | None = None


def _style(style: str, learning_rate: float, dropout: float = 0.0) -> Recipe:
    """Tuned from the base on one style alone: kept apart, blends have something to choose from."""
    return Recipe(
        {style: 1.0}, 0, 250, learning_rate=learning_rate, dropout=dropout, ancestor="tiny-base"
    )


_EVEN = {"austen": 0.45, "kjv": 0.4, "bierce": 0.15}
RECIPES = {
    "tiny-base": Recipe(_EVEN, num_short_steps=2000, num_long_steps=400),
    "tiny-austen": _style("austen", learning_rate=0.003),
    "tiny-kjv": _style("kjv", learning_rate=0.003),
    "tiny-bierce": _style("bierce", learning_rate=0.0015, dropout=0.2),
    "tiny-bytes": Recipe(_EVEN, num_short_steps=1000, num_long_steps=300),
}


def config_of(name: str) -> PreTrainedConfig:
    """A model's shape: one for the family, another (grouped queries) for the outsider."""
    if name == "tiny-bytes":
        return Qwen3Config(
            vocab_size=256 + 2,
            hidden_size=128,
            num_hidden_layers=5,
            intermediate_size=352,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            **_SHARED,
        )
    return LlamaConfig(
        vocab_size=BPE_ENTRIES,
        hidden_size=128,
        num_hidden_layers=5,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        **_SHARED,
    )
