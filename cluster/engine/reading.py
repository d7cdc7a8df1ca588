"""From a folder to a model in memory: its weights, its limits, and what it should answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from cluster.engine.base import vocab_size_of
from cluster.engine.check import make_sequences, plain_logits
from cluster.errors import InvalidRequest, NotFound, Unsupported

_NUM_CHECK_TOKENS = {"cpu": 40, "cuda": 600}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CACHE_LINE_BYTES = 64
_UNKNOWN_CONTEXT = 1 << 15  # where the configuration states no limit


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and what it should answer."""

    model: PreTrainedModel
    attention: str  # the model's own implementation
    max_context: int
    sequences: list[list[int]]
    expected: list[Tensor]  # logits of the sequences


def read_model(
    folder: Path,
    dtype: str,
    device: torch.device,
    max_context: int | None = None,
    num_shards: int = 1,
) -> Loaded:
    """Weights from safetensors only, no code from the folder, nothing from the network."""
    if not (folder / "config.json").is_file():
        raise NotFound("MODEL_FOLDER", f"{folder} is not a model folder: it has no config.json")
    if dtype not in {"auto", *_DTYPES}:
        raise InvalidRequest("DTYPE", f"{dtype}: use auto, {', '.join(_DTYPES)}", field="dtype")
    split = {"distributed_config": DistributedConfig(tp_size=num_shards)} if num_shards > 1 else {}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        wanted = _DTYPES.get(dtype) or _auto_dtype(config, device)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **split,
        )
    except (OSError, ValueError) as problem:
        raise InvalidRequest("MODEL_FOLDER", f"{folder}: {problem}", field="folder") from problem
    if num_shards == 1:  # parts of weights lie where they belong, in memory of their own
        torch.nn.Module.to(model, device)
        _align(model)
    limit = _context_limit(config.get_text_config())
    if max_context is not None and not 1 < max_context <= limit:
        message = f"{max_context}: this model takes 2 to {limit} tokens"
        raise InvalidRequest("MAX_CONTEXT", message, field="max_context")
    context = max_context or limit
    sequences = make_sequences(vocab_size_of(model), min(context, _NUM_CHECK_TOKENS[device.type]))
    attention = str(model.config._attn_implementation)
    try:
        expected = plain_logits(model, sequences)
    except Exception as problem:
        message = f"{config.model_type}: it cannot run as it is stored: {problem}"
        raise Unsupported("ARCHITECTURE", message) from problem
    return Loaded(model, attention, context, sequences, expected)


def _align(model: PreTrainedModel) -> None:
    """Weights mapped from a file begin anywhere; matrix products on processors want cache lines.

    Measured: a float32 product of 8 rows takes 1.4 times as long on weights not so aligned.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % _CACHE_LINE_BYTES:
            weight.data = weight.data.clone()


def _auto_dtype(config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """What the weights are stored in; processors have no float16 arithmetic to speak of."""
    stored = getattr(config, "dtype", None) or torch.float32
    assert isinstance(stored, torch.dtype)
    return torch.float32 if stored == torch.float16 and device.type == "cpu" else stored


def _context_limit(config: PreTrainedConfig) -> int:
    """The longest context the model is right for in a batch of unlike lengths.

    `dynamic` and `longrope` positions switch by the longest position of the whole pass, so one long
    sequence would change the short ones: they end where the switch would come.
    """
    limits = [getattr(config, "max_position_embeddings", None) or _UNKNOWN_CONTEXT]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *rope.values()]:
        if isinstance(parameters, dict) and parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            limits += [int(original)] if original else []
    return int(min(limits))
