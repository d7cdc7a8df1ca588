"""Whole merges of folders: what comes out, and that nothing does where something is wrong."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cluster.errors import CuveeError, InvalidRequest, SpecError, Unavailable, Unsupported
from cluster.merging import writer as writer_module
from cluster.merging.manifest import MANIFEST
from cluster.merging.merge import merge
from cluster.spec import load_recipe
from tests.merging.factories import (
    make_checkpoint,
    make_family,
    make_relative,
    merged,
    recipe,
    tensors_of,
)

MEAN = "{merge_method: linear, models: [{model: $a}, {model: $b}]}"


def refusal(out: Path, content: str, error: type[CuveeError], reason: str, **models: Path) -> str:
    """The words, after checking that nothing at all was left behind."""
    before = set(out.parent.iterdir())
    with pytest.raises(error) as caught:
        merged(out, content, **models)
    assert caught.value.reason == reason
    assert set(out.parent.iterdir()) == before
    return caught.value.message


def test_the_mean_of_two_models_is_a_model(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    done = merged(tmp_path / "out", MEAN, a=a, b=b)
    ours, (one, other) = tensors_of(tmp_path / "out"), (tensors_of(a), tensors_of(b))
    assert ours.keys() == one.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, (one[name] + other[name]) / 2, atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert done.num_bytes_read == 2 * done.num_bytes_written


def test_parameters_vary_by_layer_and_by_tensor(tmp_path: Path) -> None:
    base, (a, _) = make_family(tmp_path)
    content = """
    merge_method: slerp
    base_model: $base
    models: [{model: $base}, {model: $a}]
    parameters: {t: [{filter: mlp, value: [0, 1]}, {filter: self_attn, value: 1}, {value: 0}]}
    """
    merged(tmp_path / "out", content, base=base, a=a)
    ours, from_base, from_a = (tensors_of(f) for f in (tmp_path / "out", base, a))
    for name, tensor in ours.items():
        if ".mlp." in name and ".1." in name:
            assert not torch.equal(tensor, from_base[name])
            assert not torch.equal(tensor, from_a[name])
            continue
        is_a = "self_attn" in name or (".mlp." in name and ".2." in name)
        assert torch.equal(tensor, (from_a if is_a else from_base)[name]), name


def test_the_result_has_the_types_of_its_sources_or_the_one_asked_for(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    a = make_relative(tmp_path / "a", base, seed=1, dtype=torch.bfloat16)
    b = make_relative(tmp_path / "b", base, seed=2, dtype=torch.bfloat16)
    merged(tmp_path / "out", MEAN, a=a, b=b)
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {torch.bfloat16}
    content = MEAN.replace("linear,", "linear, dtype: float32, out_dtype: float16,")
    merged(tmp_path / "half", content, a=a, b=b)
    assert {t.dtype for t in tensors_of(tmp_path / "half").values()} == {torch.float16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_arithmetic_is_in_float32(tmp_path: Path) -> None:
    """Three thirds of bfloat16 numbers are rounded once, at the end."""
    base = make_checkpoint(tmp_path / "base")
    folders = [
        make_relative(tmp_path / name, base, seed=seed, dtype=torch.bfloat16)
        for seed, name in enumerate("abc", 1)
    ]
    content = "{merge_method: linear, models: [{model: $a}, {model: $b}, {model: $c}]}"
    merged(tmp_path / "out", content, **dict(zip("abc", folders, strict=True)))
    everything = [tensors_of(folder) for folder in folders]
    for name, tensor in tensors_of(tmp_path / "out").items():
        mean = torch.stack([one[name].double() for one in everything]).mean(0)
        assert ((tensor.double() - mean).abs() <= mean.abs() * 2.0**-8 * 1.001).all(), name


def test_shards_and_index_load_as_one_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (a, b) = make_family(tmp_path)
    merged(tmp_path / "one", MEAN, a=a, b=b)
    monkeypatch.setattr(writer_module.WeightWriter.__init__, "__defaults__", (5000,))
    merged(tmp_path / "many", MEAN, a=a, b=b)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("one", "many"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, many.state_dict()[name])
    again = merged(tmp_path / "again", MEAN, a=tmp_path / "many", b=tmp_path / "one")
    assert again.num_bytes_written == 2 * again.num_bytes_read // 4


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tmp_path: Path, tied: bool) -> None:
    _, (a, b) = make_family(tmp_path, tie_word_embeddings=tied)
    if tied:  # a checkpoint may store the head once more
        tensors = load_file(a / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, a / "model.safetensors", {"format": "pt"})
    merged(tmp_path / "out", MEAN, a=a, b=b)
    assert ("lm_head.weight" in tensors_of(tmp_path / "out")) == (not tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_reward_models_merge_with_their_heads(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path, num_labels=1)
    merged(tmp_path / "out", MEAN, a=a, b=b)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    heads = [tensors_of(folder)["score.weight"] for folder in (a, b)]
    assert torch.allclose(model.score.weight, sum(heads) / 2, atol=1e-6)


def test_the_manifest_names_no_path(tmp_path: Path) -> None:
    base, (a, b) = make_family(tmp_path)
    content = "{merge_method: ties, base_model: $base, models: [{model: $a}, {model: $b}]}"
    merged(tmp_path / "out", content, base=base, a=a, b=b)
    text = (tmp_path / "out" / MANIFEST).read_text()
    told = json.loads(text)
    assert str(tmp_path) not in text
    assert told["recipe"]["merge_method"] == "ties"
    assert len({source["sha256"] for source in told["inputs"]}) == 3
    assert told["recipe"]["models"][0]["model"] == f"sha256:{told['inputs'][0]['sha256']}"
    assert told["relation"]["weights"].keys() == {
        f"sha256:{s['sha256']}" for s in told["inputs"][:2]
    }
    for file in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_tokenizer_and_template_are_the_recipes_choice(tmp_path: Path) -> None:
    content = """
    merge_method: linear
    tokenizer_source: embedded:tiny-kjv
    chat_template: "{% for m in messages %}{{ m.content }}{% endfor %}"
    models: [{model: embedded:tiny-austen}, {model: embedded:tiny-kjv}]
    """
    merged(tmp_path / "out", content)
    assert (tmp_path / "out" / "chat_template.jinja").read_text().startswith("{% for")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "Hi"
    unknown = content.replace("tokenizer_source: embedded:tiny-kjv", "tokenizer_source: base")
    message = refusal(tmp_path / "no", unknown, InvalidRequest, "MERGE_MODEL_UNKNOWN")
    assert message.startswith("got base; expected a model of this recipe: embedded:tiny-austen")


def test_dare_is_the_same_however_often_and_differs_by_seed(tmp_path: Path) -> None:
    base, (a, b) = make_family(tmp_path)
    content = """
    {merge_method: dare_ties, base_model: $base, seed: SEED, parameters: {density: 0.5},
     models: [{model: $a}, {model: $b}]}
    """
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        merged(tmp_path / name, content.replace("SEED", str(seed)), base=base, a=a, b=b)
    one, two, three = (tensors_of(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not any(torch.equal(t, three[name]) for name, t in one.items() if t.numel() > 99)


# Refusals.


def changed(folder: Path, source: Path, **tensors: torch.Tensor | None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    kept = {k: t for k, t in ({**tensors_of(source), **tensors}).items() if t is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_unlike_models_are_refused_by_name(tmp_path: Path) -> None:
    base, (a, _) = make_family(tmp_path)
    norm = "model.norm.weight"
    out = tmp_path / "out"
    cases: list[tuple[Path, str, str]] = [
        (
            changed(tmp_path / "shape", a, **{norm: torch.ones(5)}),
            "MERGE_SHAPES_DIFFER",
            "model.norm.weight is 5 in",
        ),
        (
            changed(tmp_path / "lacks", a, **{norm: None}),
            "MERGE_TENSOR_MISSING",
            "has no model.norm.weight, which",
        ),
        (
            changed(tmp_path / "more", a, extra=torch.ones(2)),
            "MERGE_TENSOR_MISSING",
            "has no extra, which",
        ),
        (
            make_checkpoint(tmp_path / "wide", hidden_size=32),
            "MERGE_CONFIGS_DIFFER",
            "configurations differ in hidden_size: 16 in",
        ),
        (
            make_checkpoint(tmp_path / "deep", num_hidden_layers=4),
            "MERGE_CONFIGS_DIFFER",
            "num_hidden_layers",
        ),
        (
            make_checkpoint(tmp_path / "theta", rope_parameters={"rope_theta": 500.0}),
            "MERGE_CONFIGS_DIFFER",
            "rope",
        ),
        (
            make_checkpoint(tmp_path / "mistral", kind="mistral"),
            "MERGE_CONFIGS_DIFFER",
            "expected models of one architecture",
        ),
        (
            changed(tmp_path / "nan", a, **{norm: torch.full((16,), float("nan"))}),
            "MERGE_NOT_FINITE",
            "has such itself",
        ),
    ]
    for folder, reason, words in cases:
        message = refusal(out, MEAN, Unsupported, reason, a=base, b=folder)
        assert words in message
        assert str(folder) in message


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    import shutil

    from cluster.models.resolve import resolve

    other = tmp_path / "other"
    shutil.copytree(resolve("embedded:tiny-austen", download=False), other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(content))
    models = {"a": Path("embedded:tiny-austen"), "b": other}
    message = refusal(tmp_path / "out", MEAN, Unsupported, "MERGE_VOCABULARIES_DIFFER", **models)
    assert "a token's row is another token's" in message


def test_results_too_large_for_their_type_are_refused(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    content = """{merge_method: linear, out_dtype: float16, parameters: {normalize: false},
      models: [{model: $a, parameters: {weight: 1.0e+6}}, {model: $b}]}"""
    message = refusal(tmp_path / "out", content, Unsupported, "MERGE_NOT_FINITE", a=a, b=b)
    assert "too large for torch.float16; lower the weights" in message


def test_weights_that_sum_to_nothing_are_refused_before_any_work(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    content = """{merge_method: linear, models: [{model: $a, parameters: {weight: [1, -1]}},
      {model: $b, parameters: {weight: 1}}]}"""
    message = refusal(tmp_path / "out", content, InvalidRequest, "MERGE_WEIGHTS_INVALID", a=a, b=b)
    assert "got weights -1, 1, which sum to 0; expected a sum above 0" in message


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    (tmp_path / "out").mkdir()
    refusal(tmp_path / "out", MEAN, InvalidRequest, "MERGE_OUT_EXISTS", a=a, b=b)


def test_a_disk_without_room_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (a, b) = make_family(tmp_path)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("cluster.merging.folder.shutil.disk_usage", lambda folder: usage)
    message = refusal(tmp_path / "out", MEAN, Unavailable, "DISK_FULL", a=a, b=b)
    assert "has 10 bytes left" in message


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """By the kernel's own limit on the size of a file."""
    _, (a, b) = make_family(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        message = refusal(tmp_path / "out", MEAN, Unavailable, "DISK_FULL", a=a, b=b)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert "has no room for out" in message


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path)

    def interrupt(done: int, total: int) -> None:
        assert done < total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe(MEAN, a=a, b=b), tmp_path / "out", watch=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "m0", "m1"}


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    base, (a, _) = make_family(tmp_path)
    content = "{merge_method: task_arithmetic, base_model: $base, models: [{model: $a}]}"
    seen: list[tuple[int, int]] = []
    spec = recipe(content, base=base, a=a)
    merge(spec, tmp_path / "out", watch=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


# Warnings.


def test_relatives_of_a_declared_ancestor_warn_of_nothing(tmp_path: Path) -> None:
    base, (a, b) = make_family(tmp_path)
    content = "{merge_method: ties, base_model: $base, models: [{model: $a}, {model: $b}]}"
    done = merged(tmp_path / "out", content, base=base, a=a, b=b)
    assert done.warnings == ()
    assert done.relation is not None
    assert min(done.relation.weights.values()) > 0.9
    assert abs(done.relation.changes[str(a), str(b)]) < 0.1  # independent noise


def test_an_undeclared_ancestor_is_warned_of(tmp_path: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    (warning,) = merged(tmp_path / "out", MEAN, a=a, b=b).warnings
    assert warning.startswith("no common ancestor is declared (base_model)")


def test_strangers_are_warned_of(tmp_path: Path) -> None:
    a, b = (make_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    warnings = merged(tmp_path / "out", MEAN, a=a, b=b).warnings
    assert "look unrelated (cosine of weights" in warnings[1]


# Recipes.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("merge_method: lineer\nmodels: [{model: org/a}]", "did you mean linear?"),
        ("merge_method: linear", "expected exactly one of models and slices"),
        ("merge_method: ties\nmodels: [{model: org/a}]", "base_model: missing"),
        (
            "merge_method: ties\nbase_model: org/a\nmodels: [{model: org/a}]",
            "expected at least one model besides base_model",
        ),
        (
            "merge_method: linear\nmodels: [{model: org/a, parameters: {wieght: 1}}]",
            "models[0].parameters.wieght: linear has weight, normalize; did you mean weight?",
        ),
        (
            "merge_method: linear\nmodels: [{model: org/a, parameters: {normalize: true}}]",
            "expected among the recipe's own parameters",
        ),
        (
            "merge_method: linear\nparameters: {normalize: 1}\nmodels: [{model: org/a}]",
            "got 1.0; expected true or false",
        ),
        (
            "merge_method: dare_ties\nbase_model: org/b\nparameters: {density: 2}\n"
            "models: [{model: org/a}]",
            "got 2.0; expected a number between 0 and 1",
        ),
        (
            "merge_method: slerp\nparameters: {t: 0.5}\n"
            "models: [{model: org/a}, {model: org/b}, {model: org/c}]",
            "expected two models with it",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: org/a, layer_range: [2, 1]}]}]",
            "layer_range: got a list; expected a first layer of at least 0",
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: org/a, layer_range: [0, 2]}, "
            "{model: org/b, layer_range: [0, 3]}]}]",
            "expected layer_range of one length",
        ),
        (
            "merge_method: linear\nparameters: {weight: [{fliter: a, value: 1}]}\n"
            "models: [{model: org/a}]",
            "a list of {filter: part of a tensor's name, value: …}",
        ),
        ("merge_method: mergekit", "mergekit: expected with merge_method: mergekit"),
        ("merge_method: linear\nmodels: [{model: gpt2}]", "expected embedded:NAME"),
    ],
)
def test_wrong_recipes_are_refused_with_the_line(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(content)
    with pytest.raises(SpecError) as caught:
        load_recipe(file)
    assert words in caught.value.message
    assert caught.value.message.startswith(f"{file}:")


def test_a_recipe_survives_its_own_data(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [
            {"model": "org/a", "parameters": {"weight": [0.0, 1.0]}},
            {"model": "org/b", "parameters": {"density": [{"filter": "mlp", "value": 0.5}]}},
        ],
        "parameters": {"normalize": False},
    }
    spec = recipe(content)
    assert spec.to_mapping() == content
    assert recipe(yaml.safe_dump(spec.to_mapping())) == spec
    assert spec.name.startswith("merge:ties-")
    assert recipe(content | {"seed": 1}).name != spec.name


def test_the_merge_reads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """A base that is only declared is neither read nor counted."""
    base, (a, b) = make_family(tmp_path)
    content = "{merge_method: linear, base_model: $base, models: [{model: $a}, {model: $b}]}"
    done = merged(tmp_path / "out", content, base=base, a=a, b=b)
    assert done.num_bytes_read == 2 * done.num_bytes_written
    assert done.warnings == ()


def test_memory_holds_a_few_tensors_and_not_the_models(tmp_path: Path) -> None:
    """Two tensors of each input, since the next ones are read ahead, and two results."""
    size = 4 << 20  # numbers of each tensor; 16 MiB
    folders = [make_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    for folder in folders:
        large = {f"extra.{i}": torch.ones(size) for i in range(8)}
        save_file({**tensors_of(folder), **large}, folder / "model.safetensors", {"format": "pt"})
        del large
    spec = recipe(MEAN.replace("linear", "ties, base_model: $a"), a=folders[0], b=folders[1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = peak_bytes()
    done = merge(spec, tmp_path / "out")
    assert done.num_bytes_read > 256 << 20
    assert peak_bytes() - before < (2 * 2 + 2) * 4 * size + (32 << 20)


def peak_bytes() -> int:
    """The most memory that this process has had in use."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
