"""What is known of a model before it is loaded: checked against the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
)

from cluster.errors import Unsupported
from cluster.models.facts import (
    PROCESS_BYTES,
    ModelFacts,
    check_split,
    default_kv_memory,
    max_leases,
    memory_need,
    read_facts,
    read_vocabulary,
)

LLAMA: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)
GEMMA3 = Gemma3TextConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=256,
)


def saved(folder: Path, config: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, ModelFacts]:
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    return model, read_facts(folder)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**LLAMA), LlamaConfig(**LLAMA, tie_word_embeddings=True), GPT2, GEMMA3],
    ids=["llama", "llama-tied", "gpt2", "gemma3"],
)
def test_facts_agree_with_the_loaded_model(tmp_path: Path, config: Any) -> None:
    model, facts = saved(tmp_path, config)
    assert facts.sizes.num_parameters == model.num_parameters()
    assert facts.weight_bytes("bfloat16") == 2 * model.num_parameters()
    assert facts.architecture == type(model).__name__
    assert facts.vocab_size == config.vocab_size
    assert facts.max_context == config.max_position_embeddings

    cache = model(torch.tensor([[1, 2, 3, 4, 5]]), use_cache=True).past_key_values
    cached = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert facts.kv_values_per_token == cached // 5


def test_auto_means_the_checkpoints_own_dtype(tmp_path: Path) -> None:
    _, facts = saved(tmp_path, LlamaConfig(**LLAMA), torch.bfloat16)
    assert facts.default_dtype == facts.sizes.dtype == "bfloat16"
    assert facts.weight_bytes("auto") == facts.weight_bytes("bfloat16")
    assert 2 * facts.weight_bytes("auto") == facts.weight_bytes("float32")
    assert facts.kv_bytes_per_token("auto") == 2 * facts.kv_values_per_token


def test_sharded_weights_are_added_up(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_facts(tmp_path).sizes.num_parameters == model.num_parameters()


def test_a_chat_template_is_noticed_in_either_place(tmp_path: Path) -> None:
    _, facts = saved(tmp_path, LlamaConfig(**LLAMA))
    assert not facts.has_chat_template
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert read_facts(tmp_path).has_chat_template
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("x")
    assert read_facts(tmp_path).has_chat_template


def test_a_pointer_instead_of_weights_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(Unsupported, match="run git lfs pull"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "vit"}', "which generates no text"),
        ('{"model_type": "mamba"}', "whose state is no key-value cache"),
        ('{"model_type": "never-heard-of"}', "cannot be used"),
        ("not json", "cannot be used"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}', "cannot be used"),
    ],
)
def test_models_that_cannot_be_served_are_refused(tmp_path: Path, config: str, said: str) -> None:
    saved(tmp_path, LlamaConfig(**LLAMA))
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(Unsupported, match=said) as caught:
        read_facts(tmp_path)
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_leases_are_full_sequences_and_never_none(tmp_path: Path) -> None:
    _, facts = saved(tmp_path, LlamaConfig(**LLAMA))
    per_token = facts.kv_bytes_per_token("float32")
    room = 3 * 128 * per_token
    assert max_leases(facts, "float32", kv_memory_bytes=room) == 3
    assert max_leases(facts, "float32", kv_memory_bytes=room, max_context=64) == 6
    assert max_leases(facts, "float32", kv_memory_bytes=room, max_context=9999) == 3
    assert max_leases(facts, "float32", kv_memory_bytes=1) == 1


def test_memory_is_weights_cache_and_process(tmp_path: Path) -> None:
    _, facts = saved(tmp_path, LlamaConfig(**LLAMA))
    need = memory_need(facts, "float32", 1000)
    assert need.total_bytes == facts.weight_bytes("float32") + 1000 + PROCESS_BYTES


def test_the_default_room_is_a_share_of_what_is_free_and_bounded(tmp_path: Path) -> None:
    _, facts = saved(tmp_path, LlamaConfig(**{**LLAMA, "max_position_embeddings": 4096}))
    weights = facts.weight_bytes("float32")

    def room(free_bytes: int, device: str = "cpu") -> int:
        return default_kv_memory(facts, "float32", device=device, free_bytes=free_bytes)

    enough = room(1 << 40)
    assert enough == 32 * 4096 * facts.kv_bytes_per_token("float32")
    assert room(weights + (6 << 20)) == (6 << 20) // 4
    assert room(weights + (2 << 20), "cuda") == int((2 << 20) * 0.8)

    def asked(**changes: Any) -> int:
        return default_kv_memory(facts, "float32", device="cpu", **changes)

    assert asked(free_bytes=1 << 40, kv_dtype="bfloat16") == enough // 2
    assert asked(free_bytes=weights + (6 << 20), kv_share=0.5) == 3 << 20
    assert asked(free_bytes=weights + (1 << 40), kv_share=0.5) == 1 << 39  # as asked, unbounded
    with pytest.raises(Unsupported, match="are free on cpu") as caught:
        room(weights)
    assert caught.value.reason == "MEMORY_TOO_SMALL"


def test_a_folder_without_a_usable_tokenizer_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, LlamaConfig(**LLAMA))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Unsupported) as caught:
        read_vocabulary(tmp_path)
    assert caught.value.reason == "TOKENIZER_UNUSABLE"


@pytest.mark.parametrize(
    ("config", "num_heads"),
    [
        (LlamaConfig(**LLAMA), 2),
        (GEMMA3, 1),
        (GPT2, 0),  # has no plan
        (Phi3Config(**LLAMA, pad_token_id=0), 0),  # keys and queries in one matrix: not shared out
    ],
    ids=["llama", "gemma3", "gpt2", "phi3"],
)
def test_whole_heads_are_shared_out_or_none(
    tmp_path: Path, config: PreTrainedConfig, num_heads: int
) -> None:
    _, facts = saved(tmp_path, config)
    assert facts.num_split_heads == num_heads
    check_split(facts, 1)
    if num_heads > 1:
        check_split(facts, num_heads)
    with pytest.raises(Unsupported, match="expected") as refused:
        check_split(facts, 3)
    assert (refused.value.reason, refused.value.field) == ("NOT_SPLITTABLE", "tensor_parallel")


def test_a_split_replica_has_as_many_processes_and_the_same_weights(tmp_path: Path) -> None:
    _, facts = saved(tmp_path, LlamaConfig(**LLAMA))
    one, two = (memory_need(facts, "auto", 1 << 20, num) for num in (1, 2))
    assert two.total_bytes - one.total_bytes == PROCESS_BYTES
