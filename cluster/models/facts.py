"""What a model folder says before any weight is loaded: sizes, limits, and the memory it will need.

Where a model's layers differ (windows, shared or narrower heads), the numbers are upper bounds: the
widest layer counts for all. Activations are not counted; they are small beside weights and cache.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import Unsupported
from cluster.models.weights import WeightSizes, weight_sizes
from cluster.text.member import load_tokenizer
from cluster.text.vocabulary import Vocabulary

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
PROCESS_BYTES = 400 << 20  # Python with torch and transformers loaded: 367 MiB measured, on CPU

_KV_SHARE_OF_FREE = {"cpu": 0.25, "cuda": 0.8}  # on CPU the memory is shared with everything else
_KV_FULL_SEQUENCES = 32  # more room than this is not taken unasked
_MIN_KV_BYTES = 1 << 20
_DEFAULT_CONTEXT = 2048  # for models that set no limit of their own (ALiBi, recurrent)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model without loading it."""

    folder: Path
    architecture: str  # transformers' class, such as LlamaForCausalLM
    sizes: WeightSizes
    default_dtype: str  # what `dtype: auto` means for it
    vocab_size: int
    max_context: int  # tokens
    num_layers: int
    kv_values_per_token: int  # numbers cached per token, over all layers
    has_chat_template: bool
    num_split_heads: int  # key-value heads that devices can share out; 0: it cannot be split

    def dtype(self, asked: str) -> str:
        return self.default_dtype if asked == "auto" else asked

    def weight_bytes(self, dtype: str) -> int:
        sizes = self.sizes
        return sizes.num_floats * DTYPE_BYTES[self.dtype(dtype)] + sizes.other_bytes

    def kv_bytes_per_token(self, dtype: str) -> int:
        return self.kv_values_per_token * DTYPE_BYTES[self.dtype(dtype)]

    def context(self, asked: int | None) -> int:
        """The longest sequence a replica takes: what was asked for, within the model's limit."""
        return min(asked or self.max_context, self.max_context)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The memory of one replica; on a GPU, `process_bytes` is the host's."""

    weights_bytes: int
    kv_bytes: int
    process_bytes: int = PROCESS_BYTES

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.process_bytes


def read_facts(folder: Path) -> ModelFacts:
    """Read a model folder's configuration and headers; costs the import of transformers."""
    sizes = weight_sizes(folder)
    config = _config(folder)
    text = config.get_text_config(decoder=True)
    num_layers = getattr(text, "num_hidden_layers", 0)
    dtype = str(getattr(text, "dtype", None) or sizes.dtype).removeprefix("torch.")
    return ModelFacts(
        folder=folder,
        architecture=(config.architectures or [config.model_type])[0],
        sizes=sizes,
        default_dtype=dtype if dtype in DTYPE_BYTES else sizes.dtype,
        vocab_size=text.vocab_size,
        max_context=getattr(text, "max_position_embeddings", None) or _DEFAULT_CONTEXT,
        num_layers=num_layers,
        kv_values_per_token=num_layers * _kv_values_per_layer(text, folder),
        has_chat_template=_has_chat_template(folder),
        num_split_heads=_num_split_heads(text),
    )


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a model folder's tokenizer; those with equal fingerprints are one."""
    return Vocabulary.load(load_tokenizer(folder))


def check_split(facts: ModelFacts, num_shards: int) -> None:
    """Refuse a split over devices that would not give each its share of every attention layer."""
    if num_shards == 1 or (facts.num_split_heads and facts.num_split_heads % num_shards == 0):
        return
    words = f"{facts.architecture} has no plan for splitting its attention; expected 1 device"
    if most := facts.num_split_heads:
        fitting = [str(num) for num in range(1, most + 1) if most % num == 0]
        words = (
            f"its {most} key-value heads cannot be shared out to {num_shards} devices alike; "
            f"expected num_gpus or tensor_parallel to be one of {', '.join(fitting)}"
        )
    raise Unsupported("NOT_SPLITTABLE", words, field="tensor_parallel")


def memory_need(
    facts: ModelFacts, dtype: str, kv_memory_bytes: int, num_shards: int = 1
) -> MemoryNeed:
    """What one replica will hold, on all its devices together."""
    weights_bytes = facts.weight_bytes(dtype)
    return MemoryNeed(weights_bytes, kv_memory_bytes, PROCESS_BYTES * num_shards)


def default_kv_memory(
    facts: ModelFacts,
    dtype: str,
    *,
    device: str,
    free_bytes: int,
    max_context: int | None = None,
    kv_dtype: str | None = None,
    kv_share: float | None = None,
) -> int:
    """Room for cached state where the blend file sets no size.

    The share that it asks for of what `free_bytes` leaves beside the weights; else one that leaves
    room for others, and at most what 32 full sequences need.
    """
    room = free_bytes - facts.weight_bytes(dtype)
    share = int(room * (kv_share or _KV_SHARE_OF_FREE[device]))
    if share < _MIN_KV_BYTES:
        raise Unsupported(
            "MEMORY_TOO_SMALL",
            f"{facts.folder.name}: its weights need {facts.weight_bytes(dtype) >> 20} MiB as "
            f"{facts.dtype(dtype)}, and {free_bytes >> 20} MiB are free on {device}",
            field="kv_memory",
        )
    if kv_share is not None:
        return share
    wanted = (
        facts.kv_bytes_per_token(kv_dtype or dtype)
        * facts.context(max_context)
        * _KV_FULL_SEQUENCES
    )
    return min(share, max(wanted, _MIN_KV_BYTES))


def max_leases(
    facts: ModelFacts, kv_dtype: str, *, kv_memory_bytes: int, max_context: int | None = None
) -> int:
    """How many sequences of full length a replica's room holds at once, but at least 1.

    One sequence may always run: a room smaller than the context shortens the context instead.
    """
    full_bytes = facts.kv_bytes_per_token(kv_dtype) * facts.context(max_context)
    return max(1, kv_memory_bytes // full_bytes)


def _config(folder: Path) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each architecture checks its file in its own way
        message = f"{folder / 'config.json'} cannot be used: {error}"
        raise Unsupported("MODEL_UNSUPPORTED", message, field="model") from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        message = f"{folder} holds a {config.model_type} model, which generates no text"
        raise Unsupported("MODEL_UNSUPPORTED", message, field="model")
    return config


def _kv_values_per_layer(text: Any, folder: Path) -> int:
    """Keys and values of one token in the widest layer."""
    layers = getattr(text, "per_layer_config", None) or [text]
    values = [_kv_values(layer) for layer in layers]
    if not all(values):
        message = f"{folder} holds a {text.model_type} model, whose state is no key-value cache"
        raise Unsupported("MODEL_UNSUPPORTED", message, field="model")
    return max(values)


def _kv_values(layer: Any) -> int:
    num_heads = getattr(layer, "num_attention_heads", None) or 0
    hidden_size = getattr(layer, "hidden_size", 0)
    head_size = getattr(layer, "head_dim", None) or hidden_size // max(num_heads, 1)
    key_size = getattr(layer, "qk_head_dim", None) or head_size  # latent attention, decompressed
    value_size = getattr(layer, "v_head_dim", None) or head_size
    return int(_num_kv_heads(layer) * (key_size + value_size))


def _num_kv_heads(layer: Any) -> int:
    num_heads = getattr(layer, "num_attention_heads", None) or 0
    return int(getattr(layer, "num_key_value_heads", None) or num_heads)


def _num_split_heads(text: Any) -> int:
    """Of models whose plan gives each device whole heads: queries, keys and values alike."""
    plan = getattr(text, "base_model_tp_plan", None) or {}
    styles = {
        rule.rpartition(".")[2]: style for rule, style in plan.items() if ".self_attn." in rule
    }
    if any(styles.get(name) != "colwise" for name in ("q_proj", "k_proj", "v_proj")):
        return 0
    layers = getattr(text, "per_layer_config", None) or [text]
    return math.gcd(*(_num_kv_heads(layer) for layer in layers))


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text()).get("chat_template"))
