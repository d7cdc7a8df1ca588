"""Small random ranker checkpoints, written as anybody's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from cluster.models.resolve import resolve

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def make_ranker(
    folder: Path,
    *,
    architecture: str = "bert",
    num_labels: int | None = 1,
    chat: bool = False,
    seed: int = 0,
) -> Path:
    """A classifier with so many labels, or an encoder without a head."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded:tiny-austen", download=False))
    if not chat:
        tokenizer.chat_template = None
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **_SIZES)
    torch.manual_seed(seed)
    if num_labels is None:
        model = AutoModel.from_config(config)
    else:
        config.num_labels = num_labels
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
