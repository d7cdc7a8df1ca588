"""Adapters composed and merged, against sums written out; LoraHub's search of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.errors import InvalidRequest, NotFound, SpecError
from cluster.merging.search import search
from cluster.models.passages import Passage
from cluster.spec import load_recipe
from tests.merging.factories import make_checkpoint, merged, recipe, tensors_of

pytest.importorskip("peft", reason="pip install 'cuvee[merge]'")

# peft asks transformers for what it will no longer have under that name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NAME = "model.layers.{}.self_attn.q_proj.weight"
CAT = """{merge_method: lora, base_model: $base, parameters: {combination: cat},
  models: [{model: $one, parameters: {weight: 0.7}}, {model: $two, parameters: {weight: -0.4}}]}"""


def make_adapter(folder: Path, base: Path | str, *, seed: int, rank: int = 2) -> Path:
    """A random adapter on the queries, large enough to be seen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj"])
    adapted: Any = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    return folder


def change_of(adapter: Path, layer: int) -> torch.Tensor:
    """What the adapter adds to the queries of a layer: 2 B A."""
    tensors = tensors_of(adapter)
    prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
    return 2 * tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    base = make_checkpoint(tmp_path / "base")
    one, two = (make_adapter(tmp_path / n, base, seed=s) for s, n in ((1, "one"), (2, "two")))
    return {"base": base, "one": one, "two": two}


def test_cat_is_the_weighted_sum_of_changes(tmp_path: Path, models: dict[str, Path]) -> None:
    merged(tmp_path / "out", CAT, **models)
    ours, base = tensors_of(tmp_path / "out"), tensors_of(models["base"])
    assert ours.keys() == base.keys()
    for name, tensor in ours.items():
        expected = base[name]
        if "q_proj" in name:
            layer = int(name.split(".")[2])
            changes = (change_of(models[adapter], layer) for adapter in ("one", "two"))
            expected = expected + 0.7 * next(changes) - 0.4 * next(changes)
        assert torch.allclose(tensor, expected, atol=1e-5), name


@pytest.mark.parametrize("combination", ["linear", "svd", "ties", "dare_linear"])
def test_other_combinations_change_what_adapters_change(
    tmp_path: Path, models: dict[str, Path], combination: str
) -> None:
    merged(tmp_path / "out", CAT.replace("cat", combination).replace("-0.4", "0.4"), **models)
    ours, base = tensors_of(tmp_path / "out"), tensors_of(models["base"])
    changed = {name for name, tensor in ours.items() if not torch.equal(tensor, base[name])}
    assert changed == {NAME.format(layer) for layer in range(3)}


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, models: dict[str, Path]) -> None:
    other = make_adapter(tmp_path / "wide", models["base"], seed=3, rank=4)
    with pytest.raises(InvalidRequest, match="peft cannot combine these adapters by linear"):
        merged(tmp_path / "out", CAT.replace("cat", "linear"), **models | {"two": other})
    with pytest.raises(NotFound, match=r"has no adapter_config\.json; expected the folder of"):
        merged(tmp_path / "out", CAT, **models | {"two": models["base"]})
    assert not (tmp_path / "out").exists()
    file = tmp_path / "r.yaml"
    file.write_text(CAT.replace("-0.4", "[0, 1]").replace("$", "./"))
    with pytest.raises(SpecError, match="expected one value: peft merges adapters whole"):
        load_recipe(file)


def test_the_search_of_weights_finds_the_adapter_that_helps(tmp_path: Path) -> None:
    """One adapter is trained on the very text, the other is noise: LoraHub's case in small."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    base = "embedded:tiny-base"
    from cluster.models.resolve import resolve

    folder = resolve(base, download=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "qu zu ba " * 20
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model, config)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.02)
    ids = tokenizer(text, return_tensors="pt").input_ids
    for _ in range(12):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path / "good")
    noise = make_adapter(tmp_path / "noise", folder, seed=5, rank=4)
    content = f"""{{merge_method: lora, base_model: {base}, parameters: {{combination: cat}},
      models: [{{model: $good, parameters: {{weight: 0.1}}}},
               {{model: $noise, parameters: {{weight: 0.5}}}}]}}"""
    passages = [Passage(text[:30], text[30:60]), Passage(text[:40], text[40:75])]
    spec = recipe(content, good=tmp_path / "good", noise=noise)
    found = search(spec, passages, max_evaluations=15)
    good, bad = found.numbers
    assert good > 0.3 > abs(bad)
    assert found.best.tuned < found.start.tuned
    assert found.best.held_out < found.start.held_out
