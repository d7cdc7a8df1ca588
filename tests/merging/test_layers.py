"""Layer stacking: what comes out loads anywhere, generates, and does what its layers say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.errors import InvalidRequest, Unsupported
from cluster.merging.layers import Layout, is_before_layers, stacked_config
from tests.merging.factories import make_checkpoint, make_family, merged, tensors_of

STACK = """
merge_method: passthrough
slices:
  - {sources: [{model: $a, layer_range: [0, 2]}]}
  - {sources: [{model: $b, layer_range: [1, 3]}]}
"""
EXPAND = """
merge_method: passthrough
slices:
  - {sources: [{model: $a, layer_range: [0, 2]}]}
  - {sources: [{model: $a, layer_range: [1, 2], parameters: {scale: SILENT}}]}
  - {sources: [{model: $a, layer_range: [2, 3]}]}
  - {sources: [{model: $a, layer_range: [2, 3], parameters: {scale: SILENT}}]}
"""
SILENT = """[
  {filter: self_attn.o_proj, value: 0}, {filter: mlp.down_proj, value: 0}, {value: 1}]"""
IDS = torch.tensor([[1, 2, 3, 5, 8, 13, 21, 34]])


@torch.inference_mode()
def logits(folder: Path) -> torch.Tensor:
    found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_stacked_layers_load_and_generate(tmp_path: Path, kind: str) -> None:
    _, (a, b) = make_family(tmp_path, kind=kind)
    merged(tmp_path / "out", STACK, a=a, b=b)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 4
    model.generation_config.pad_token_id = 0
    assert model.generate(IDS, max_new_tokens=5, do_sample=False).shape == (1, 13)
    ours, (one, other) = tensors_of(tmp_path / "out"), (tensors_of(a), tensors_of(b))
    for number, (source, layer) in enumerate([(one, 0), (one, 1), (other, 1), (other, 2)]):
        for name in ours:
            if name.startswith(f"model.layers.{number}."):
                assert torch.equal(ours[name], source[name.replace(f".{number}.", f".{layer}.", 1)])
    assert torch.equal(ours["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    assert torch.equal(ours["model.norm.weight"], other["model.norm.weight"])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_block_expansion_is_the_identity_before_training(tmp_path: Path, kind: str) -> None:
    """LLaMA-Pro (2401.02415): copied blocks whose outputs are zero add nothing."""
    a = make_checkpoint(tmp_path / "a", kind=kind)
    merged(tmp_path / "out", EXPAND.replace("SILENT", SILENT), a=a)
    expanded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert expanded.config.num_hidden_layers == 5
    if kind != "gemma2":  # whose windows alternate by layer, so that copies shift them
        assert torch.equal(logits(tmp_path / "out"), logits(a))
    else:
        assert torch.allclose(logits(tmp_path / "out"), logits(a), atol=1e-5)
    merged(tmp_path / "loud", EXPAND.replace("SILENT", "1"), a=a)
    assert not torch.allclose(logits(tmp_path / "loud"), logits(a), atol=1e-2)


def test_slices_of_several_models_are_merged_layer_by_layer(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    content = """
    merge_method: linear
    slices:
      - {sources: [{model: $a, layer_range: [0, 1]}]}
      - sources: [{model: $a, layer_range: [1, 3]}, {model: $b, layer_range: [0, 2]}]
        parameters: {weight: 2}
    """
    merged(tmp_path / "out", content, a=a, b=b)
    ours, (one, other) = tensors_of(tmp_path / "out"), (tensors_of(a), tensors_of(b))
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(ours[name.format(0)], one[name.format(0)])
    for number in (1, 2):
        mean = (one[name.format(number)] + other[name.format(number - 1)]) / 2
        assert torch.allclose(ours[name.format(number)], mean, atol=1e-6)


def test_layers_that_no_model_has_are_refused(tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "a")
    content = "{merge_method: passthrough, slices: [{sources: [{model: $a, layer_range: [1, 9]}]}]}"
    with pytest.raises(InvalidRequest) as caught:
        merged(tmp_path / "out", content, a=a)
    assert caught.value.reason == "MERGE_LAYERS_OUT_OF_RANGE"
    assert caught.value.field == "slices[0].sources[0].layer_range"
    assert f"got [1, 9], but {a} has 3 layers" in caught.value.message


def test_models_of_other_depths_stack(tmp_path: Path) -> None:
    a, b = (make_checkpoint(tmp_path / f"{n}", num_hidden_layers=n) for n in (3, 5))
    merged(tmp_path / "out", STACK.replace("[1, 3]", "[2, 5]"), a=a, b=b)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 5


def test_layers_are_the_largest_numbered_group() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.experts.0.up.weight",
        "model.layers.0.mlp.experts.1.up.weight",
        "model.layers.1.mlp.experts.0.up.weight",
        "model.layers.1.mlp.experts.1.up.weight",
        "lm_head.weight",
    ]
    layout = Layout.of(names)
    assert (layout.stack, len(layout.layers)) == ("model.layers", 2)
    assert layout.layers[1] == ("mlp.experts.0.up.weight", "mlp.experts.1.up.weight")
    assert layout.outside == ("model.embed_tokens.weight", "lm_head.weight")
    assert is_before_layers("transformer.wte.weight")
    assert not is_before_layers("embed_out.weight")


def test_values_per_layer_are_put_together_again() -> None:
    config = {"num_hidden_layers": 2, "layer_types": ["full", "sliding"], "eos_token_id": [1, 2]}
    stacked = stacked_config(config, [(config, 1), (config, 0), (config, 1)], 2)
    assert stacked["layer_types"] == ["sliding", "full", "sliding"]
    assert (stacked["num_hidden_layers"], stacked["eos_token_id"]) == (3, [1, 2])
    with pytest.raises(Unsupported, match="does not say that it has 7 layers"):
        stacked_config(config, [(config, 1)], 7)


def test_the_output_configuration_says_how_many(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path, kind="qwen3")
    merged(tmp_path / "out", STACK, a=a, b=b)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 4
