"""Our methods against mergekit's where both exist, and what only mergekit has, through the adapter.

mergekit is an optional extra; without it these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from cluster.errors import InvalidRequest, Unsupported
from cluster.merging.manifest import MANIFEST
from cluster.models.resolve import resolve
from tests.merging.factories import make_checkpoint, make_relative, merged, tensors_of

pytest.importorskip("mergekit", reason="pip install 'cuvee[mergekit]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own, not ours to mend

GRADIENT = "[{filter: mlp, value: [0.1, 0.9]}, {filter: self_attn, value: 0.3}, {value: 0.6}]"
BOTH = "models: [{model: $a, parameters: {weight: 0.7}}, {model: $b, parameters: {weight: 0.4}}]"
CASES = {
    "linear": f"{{merge_method: linear, {BOTH}}}",
    "linear, not normalized": (
        f"{{merge_method: linear, parameters: {{normalize: false}}, {BOTH}}}"
    ),
    "linear, by layer": (
        "{merge_method: linear, models: [{model: $a, parameters: {weight: [0.2, 1]}}, "
        "{model: $b, parameters: {weight: 0.4}}]}"
    ),
    "slerp": (
        "{merge_method: slerp, base_model: $a, models: [{model: $a}, {model: $b}], "
        f"parameters: {{t: {GRADIENT}}}}}"
    ),
    "slerp of strangers": (
        "{merge_method: slerp, base_model: $a, models: [{model: $a}, {model: $stranger}], "
        f"parameters: {{t: {GRADIENT}}}}}"
    ),
    "task_arithmetic": (
        f"{{merge_method: task_arithmetic, base_model: $base, parameters: {{lambda: 0.8}}, {BOTH}}}"
    ),
    "task_arithmetic, normalized": (
        f"{{merge_method: task_arithmetic, base_model: $base, parameters: {{normalize: true}}, "
        f"{BOTH}}}"
    ),
    "ties": (f"{{merge_method: ties, base_model: $base, parameters: {{density: 0.4}}, {BOTH}}}"),
    "ties, not normalized": (
        "{merge_method: ties, base_model: $base, "
        f"parameters: {{density: 0.7, normalize: false, lambda: 1.3}}, {BOTH}}}"
    ),
    "dare_linear at density 1": (
        f"{{merge_method: dare_linear, base_model: $base, parameters: {{density: 1}}, {BOTH}}}"
    ),
    "dare_ties at density 1": (
        f"{{merge_method: dare_ties, base_model: $base, parameters: {{density: 1}}, {BOTH}}}"
    ),
    "passthrough": """
        {merge_method: passthrough, slices: [{sources: [{model: $a, layer_range: [0, 2]}]},
        {sources: [{model: $b, layer_range: [1, 3], parameters: {scale: 0.5}}]}]}""",
    "slices": """
        {merge_method: linear, parameters: {weight: 1}, slices: [
        {sources: [{model: $a, layer_range: [0, 2]}, {model: $b, layer_range: [1, 3]}]},
        {sources: [{model: $b, layer_range: [2, 3], parameters: {weight: 2}},
                   {model: $a, layer_range: [2, 3]}]}]}""",
}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    dtype = getattr(torch, request.param)
    start = make_checkpoint(folder / "start")
    base = make_relative(folder / "base", start, seed=9, dtype=dtype)
    found = {"base": base}
    found |= {n: make_relative(folder / n, base, seed=seed) for seed, n in enumerate("ab", 1)}
    stranger = make_checkpoint(folder / "other", seed=7)
    found["stranger"] = make_relative(folder / "stranger", stranger, seed=8, dtype=dtype)
    return found


def by_mergekit(out: Path, content: str, models: dict[str, Path]) -> dict[str, torch.Tensor]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    for name, path in models.items():
        content = content.replace(f"${name}", str(path))
    data = yaml.safe_load(content) | {"dtype": "float32"}  # its arithmetic
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(data), str(out), options=options)
    return tensors_of(out)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_mergekit_to_rounding(tmp_path: Path, models: dict[str, Path], case: str) -> None:
    """In float32 to its rounding; in bfloat16 what is stored is the nearest to mergekit's float32.

    TIES: entries at the threshold may go either way where changes are equal, as those of bfloat16
    often are; at most one in a hundred is.
    """
    theirs = by_mergekit(tmp_path / "theirs", CASES[case], models)
    merged(tmp_path / "ours", CASES[case], **models)
    ours = tensors_of(tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    is_half = tensors_of(models["a"])["model.norm.weight"].dtype is torch.bfloat16
    tolerance = 2.0**-8 if is_half else 2.0**-20
    off = [
        (tensor.float() - theirs[name]).abs() > tolerance * theirs[name].abs() + 1e-6
        for name, tensor in ours.items()
    ]
    share_off = float(torch.cat([one.reshape(-1) for one in off]).float().mean())
    assert share_off <= (0.01 if is_half and case.startswith("ties") else 0)


def test_spherical_mean_is_mergekits_karcher(tmp_path: Path, models: dict[str, Path]) -> None:
    rest = "models: [{model: $a}, {model: $stranger}]"
    theirs = by_mergekit(tmp_path / "theirs", f"{{merge_method: karcher, {rest}}}", models)
    content = f"{{merge_method: slerp, parameters: {{mean: spherical}}, {rest}, dtype: float32}}"
    merged(tmp_path / "ours", content, **models)
    for name, tensor in tensors_of(tmp_path / "ours").items():
        scale = float(theirs[name].abs().max())
        assert torch.allclose(tensor, theirs[name], atol=5e-3 * scale), name


# The adapter.

FAMILY = "[{model: embedded:tiny-austen}, {model: embedded:tiny-kjv}]"


@pytest.mark.parametrize(
    "content",
    [
        f"{{merge_method: model_stock, base_model: embedded:tiny-base, models: {FAMILY}}}",
        f"{{merge_method: della, base_model: embedded:tiny-base, models: {FAMILY}, "
        "parameters: {weight: 0.5, density: 0.5, epsilon: 0.2}}",
        f"{{merge_method: linear, models: {FAMILY}, parameters: {{weight: 1}}, "
        "tokenizer_source: union}",
    ],
)
def test_what_mergekit_has_beyond(tmp_path: Path, content: str) -> None:
    merged(tmp_path / "out", f"{{merge_method: mergekit, mergekit: {content}}}")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "mergekit_config.yml").exists()
    folder = str(resolve("embedded:tiny-base", download=False).parent)
    for file in (tmp_path / "out").glob("*.json"):
        assert folder not in file.read_text(), file.name
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert {source["model"] for source in told["inputs"]} >= {"embedded:tiny-austen"}


def test_experts_from_dense_models(tmp_path: Path) -> None:
    content = """
    merge_method: mergekit
    mergekit:
      base_model: embedded:tiny-base
      gate_mode: hidden
      dtype: float32
      experts:
        - {source_model: embedded:tiny-austen, positive_prompts: [She was a lady of fortune]}
        - {source_model: embedded:tiny-kjv, positive_prompts: [And the LORD said unto Moses]}
    """
    merged(tmp_path / "out", content)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "mixtral"
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_mergekits_refusals_are_ours(tmp_path: Path) -> None:
    unknown = f"{{merge_method: mergekit, mergekit: {{merge_method: lineer, models: {FAMILY}}}}}"
    with pytest.raises(InvalidRequest, match="mergekit cannot do this"):
        merged(tmp_path / "out", unknown)
    experts = """{merge_method: mergekit, mergekit: {base_model: embedded:tiny-base,
      experts: [{source_model: embedded:tiny-kjv}]}}"""
    with pytest.raises(InvalidRequest, match="mergekit refuses these experts"):
        merged(tmp_path / "out", experts)
    assert not list(tmp_path.iterdir())


def test_what_mergekit_makes_is_finite_or_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(resolve("embedded:tiny-kjv", download=False), bad)
    from safetensors.torch import save_file

    tensors = tensors_of(bad)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
    save_file(tensors, bad / "model.safetensors", {"format": "pt"})
    content = f"""{{merge_method: mergekit, mergekit: {{merge_method: linear,
      models: [{{model: {bad}}}], parameters: {{weight: 1}}}}}}"""
    with pytest.raises(Unsupported, match="not finite"):
        merged(tmp_path / "out", content)
    assert not (tmp_path / "out").exists()
