"""The pass in few kernels says what transformers' own says, and is taken only where it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from cluster.engine import loading
from cluster.engine import product as products
from cluster.engine.base import Chunk
from cluster.engine.engine import Engine
from cluster.engine.fused import FusedDecoder
from cluster.engine.product import Halves, Plain, are_halves, has_halves, product
from cluster.engine.reading import read_model
from cluster.engine.runner import PagedRunner

from .factories import ask, greedy, make_engine, make_ids, make_model, plain_greedy, save_model

FAMILY = ["llama", "mistral", "qwen2", "qwen3"]


class Counter(TorchDispatchMode):
    """Counts calls of kernels; views of tensors are none."""

    num_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        self.num_calls += not any(it.alias_info and not it.alias_info.is_write for it in returned)
        return func(*args, **(kwargs or {}))


def decoder(engine: Engine) -> FusedDecoder | None:
    assert isinstance(engine._runner, PagedRunner)
    return engine._runner._fused


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_states_are_those_of_transformers(kind: str, tied: bool, tmp_path: Path) -> None:
    model = save_model(kind, tmp_path, tie_word_embeddings=tied)
    engine = make_engine(tmp_path)
    assert decoder(engine) is not None
    ids = make_ids(37)
    first = engine._runner.forward([Chunk(0, 0, ids[:30], [5, 2, 7], num_logits=1)])
    rest = engine._runner.forward([Chunk(0, 30, ids[30:], [5, 2, 7], num_logits=7)])
    with torch.inference_mode():
        told = model(torch.tensor([ids]), output_hidden_states=True)
    logits = told.logits[0, 29:]
    error = (torch.cat([first, rest]) - logits).norm() / logits.norm()
    assert float(error) < 1e-5
    states = engine._runner.states
    assert states is not None
    torch.testing.assert_close(states, told.hidden_states[-1][0, 30:], rtol=1e-4, atol=1e-5)


def test_a_head_that_is_the_embedding_stays_it(tmp_path: Path) -> None:
    save_model("llama", tmp_path, tie_word_embeddings=True)
    found = decoder(make_engine(tmp_path))
    assert found is not None
    assert isinstance(found._head, Plain)
    assert found._head.weight.data_ptr() == found._embeddings.weight.data_ptr()


def test_who_is_not_of_the_family_takes_transformers_pass(tmp_path: Path) -> None:
    for kind in ("gemma3_text", "mixtral"):
        save_model(kind, tmp_path / kind)
        assert decoder(make_engine(tmp_path / kind)) is None


def test_a_model_that_only_looks_like_one_is_found_out(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check at load: here its MLP doubles what it says."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 2 * plain(self, x))
    assert decoder(make_engine(llama_folder)) is None


def test_no_weight_is_held_twice(llama_folder: Path) -> None:
    engine = make_engine(llama_folder)
    assert isinstance(engine._runner, PagedRunner)
    model = engine._runner._model
    layer = model.get_decoder().layers[0]
    joined = decoder(engine)._layers[0].qkv.weight  # type: ignore[union-attr]
    assert layer.self_attn.k_proj.weight.data_ptr() - joined.data_ptr() == 32 * 4  # columns
    storages = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held = {weight.untyped_storage() for weight in model.parameters()}
    num_bytes = sum(
        {storage.data_ptr(): storage.nbytes() for storage in held}[pointer] for pointer in storages
    )
    assert num_bytes == sum(weight.nbytes for weight in model.parameters())


def save_halves(folder: Path, **changes: Any) -> PreTrainedModel:
    """A model in float32 whose weights are bfloat16 numbers."""
    model = make_model("llama", **changes)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    model.save_pretrained(folder)
    return model


@pytest.mark.skipif(not has_halves(), reason="needs a processor with packed float16 products")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_that_are_halves_are_packed_and_say_the_same(
    tied: bool, bias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_MIN_HALVES", 0)
    model = save_halves(tmp_path, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    engine = make_engine(tmp_path)
    assert isinstance(decoder(engine)._head, Halves)  # type: ignore[union-attr]
    ids = make_ids(37)
    logits = engine._runner.forward([Chunk(0, 0, ids, [5, 2, 7], num_logits=37)])
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    assert logits.dtype == torch.float32
    assert float((logits - expected).norm() / expected.norm()) < 2e-6
    prompt = make_ids(9, seed=4)
    result = ask(engine, engine.open(), 0, prompt, greedy(30))
    assert result.ids == plain_greedy(model, prompt, 30)


@pytest.mark.skipif(not has_halves(), reason="needs a processor with packed float16 products")
def test_packed_weights_take_the_place_of_the_models_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_MIN_HALVES", 0)
    model = save_halves(tmp_path, tie_word_embeddings=True)
    runner = make_engine(tmp_path)._runner
    assert isinstance(runner, PagedRunner)
    left = sum(weight.nbytes for weight in runner._model.parameters())
    table = model.get_input_embeddings().weight
    norms = sum(weight.nbytes for weight in model.parameters() if weight.ndim == 1)
    assert left == table.numel() * 2 + norms


@pytest.mark.skipif(not has_halves(), reason="needs a processor with packed float16 products")
@pytest.mark.parametrize("tied", [False, True])
def test_who_is_found_out_has_its_weights_again(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(products, "_MIN_HALVES", 0)
    model = save_halves(tmp_path, tie_word_embeddings=tied)
    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 2 * plain(self, x))
    engine = make_engine(tmp_path)
    assert decoder(engine) is None
    assert isinstance(engine._runner, PagedRunner)
    for name, weight in engine._runner._model.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name
    prompt = make_ids(9, seed=4)
    result = ask(engine, engine.open(), 0, prompt, greedy(12))
    assert result.ids == plain_greedy(model, prompt, 12)


@pytest.mark.skipif(not has_halves(), reason="needs a processor with packed float16 products")
@torch.inference_mode()
def test_a_packed_product_is_torchs_own_to_the_bit() -> None:
    """However it is called: one kernel, no more, for one row and for many."""
    layer = nn.Linear(128, 128)
    layer.weight.data = layer.weight.data.half().float()
    made = product([layer])
    assert isinstance(made, Halves)
    for num_rows in (1, 16):
        x = torch.randn(num_rows, 128, generator=torch.Generator().manual_seed(1))
        with Counter() as counter:
            out = made(x)
        assert counter.num_calls == 1
        assert torch.equal(out, torch.ops.quantized.linear_dynamic_fp16(x, made.packed))


def test_only_what_loses_nothing_counts_as_halves() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    assert not are_halves(weight)
    assert are_halves(weight.bfloat16().float())
    assert are_halves(weight.half().float())
    assert not are_halves(weight.bfloat16())  # another dtype keeps its own
    assert not are_halves(torch.tensor([[65536.0]]))  # beyond float16's largest
    assert not are_halves(torch.tensor([[float("nan")]]))


def test_wide_matrices_lie_by_columns_tall_and_huge_ones_by_rows() -> None:
    strides = {}
    for out, into in ((64, 32), (32, 64), (1 << 18, 32)):
        layer = nn.Linear(into, out, bias=False)
        joined = product([layer])
        assert isinstance(joined, Plain)
        assert joined.weight.data_ptr() == layer.weight.data_ptr()
        strides[out, into] = joined.weight.stride()
    assert strides == {(64, 32): (1, 64), (32, 64): (64, 1), (1 << 18, 32): (32, 1)}


def test_a_layer_takes_two_thirds_of_the_kernels(tmp_path: Path) -> None:
    """And none of transformers' calls of modules around them; keys and values move as one."""
    counts: dict[bool, list[int]] = {True: [], False: []}
    for num_layers in (2, 3):
        folder = tmp_path / str(num_layers)
        save_model("llama", folder, num_hidden_layers=num_layers)
        for fused, found in counts.items():
            loaded = read_model(folder, "float32", torch.device("cpu"))
            runner = loading.paged_runner(loaded, 16, 1 << 20, varlen=False, fused=fused)
            with Counter() as counter:
                runner.forward([Chunk(0, 0, [3], [0], num_logits=1)])
            found.append(counter.num_calls)
    per_layer = {fused: found[1] - found[0] for fused, found in counts.items()}
    assert per_layer == {True: 24, False: 37}
