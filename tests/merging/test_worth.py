"""Is a merge worth it: comparison, search and rewards, by their commands and against plain sums."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import cluster.models
from cluster.cli.main import app
from cluster.merging.bits import Reader, Reading, adapted, mixed, read_passages
from cluster.models.resolve import resolve
from cluster.spec import load_recipe
from tests.merging.factories import tensors_of
from tests.merging.warm import make_pairs, write_pairs
from tests.rankers.checkpoints import make_ranker

HELD_OUT = Path(cluster.models.__file__).parent / "embedded" / "held_out"
MEAN = """
merge_method: linear
base_model: embedded:tiny-base
models: [{model: embedded:tiny-austen}, {model: embedded:tiny-kjv}]
"""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def mean(tmp_path: Path) -> Path:
    (tmp_path / "mean.yaml").write_text(MEAN)
    return tmp_path / "mean.yaml"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text((HELD_OUT / "austen.txt").read_text()[:1400])
    return tmp_path / "text.txt"


def test_comparing_puts_members_merge_and_blends_side_by_side(
    mean: Path, text: Path, tmp_path: Path
) -> None:
    result = run("merge", mean, tmp_path / "out", "--compare", text, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["compared"]
    bits = {row["name"]: row["bits_per_byte"] for row in rows}
    assert [row["bits_per_byte"] for row in rows] == sorted(bits.values())
    kinds = {row["name"]: row["kind"] for row in rows}
    assert sorted(kinds.values()) == ["blend", "blend", "member", "member", "member", "merge"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for name, folder in (
        ("embedded:tiny-kjv", resolve("embedded:tiny-kjv", download=False)),
        ("linear", tmp_path / "out"),
    ):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        nats = num_bytes = 0.0
        for passage in read_passages([text]):
            before = tokenizer(passage.before).input_ids
            ids = tokenizer(passage.text, add_special_tokens=False).input_ids
            with torch.inference_mode():
                laws = model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
            nats -= sum(float(laws[len(before) - 1 + i, id]) for i, id in enumerate(ids))
            num_bytes += len(passage.text.encode())
        assert bits[name] == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-4)
    assert bits["mixture by token, or mean"] < bits["embedded:tiny-kjv"]


def test_people_get_a_table(mean: Path, text: Path, tmp_path: Path) -> None:
    result = run("merge", mean, tmp_path / "out", "--compare", text)
    assert result.exit_code == 0, result.output
    assert "✓" in result.stdout
    assert "cosine of weights" in result.stdout
    assert "NAME" in result.stdout
    assert "lower is better" in result.stdout


def test_blends_of_readings_are_the_blends_laws() -> None:
    import numpy as np

    one = Reading((np.log([0.5, 0.1]), np.log([0.2])), 3)
    two = Reading((np.log([0.1, 0.9]), np.log([0.6])), 3)
    mean = -sum(math.log2(p) for p in (0.75 * 0.5 + 0.025, 0.075 + 0.225, 0.15 + 0.15)) / 3
    assert mixed([one, two], [3, 1]) == pytest.approx(mean)
    whole = -sum(math.log2(p) for p in (0.75 * 0.05 + 0.25 * 0.09, 0.3)) / 3
    assert adapted([one, two], [3, 1]) == pytest.approx(whole)


def test_replies_of_examples_are_read_after_their_prompts(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text('{"prompt": "It is", "reply": " a truth"}\n')
    (passage,) = read_passages([file])
    assert (passage.before, passage.text) == ("It is", " a truth")
    folder = resolve("embedded:tiny-kjv", download=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reading = Reader(folder, [passage]).read(model)
    assert reading.num_bytes == 8
    assert 0 < reading.bits_per_byte < 10


def test_search_tunes_weights_and_reports_both_halves(
    mean: Path, text: Path, tmp_path: Path
) -> None:
    best = tmp_path / "best.yaml"
    result = run("merge", "search", mean, text, "--evaluations", 10, "--out", best, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["num_evaluations"] <= 11
    assert told["best"]["tuned"] < told["start"]["tuned"]
    assert {"tuned", "held_out"} == told["best"].keys()
    austen, kjv = told["numbers"]
    assert austen > kjv  # on Austen's text
    spec = load_recipe(best)
    assert [s.parameters["weight"].at("", 0) for s in spec.models] == [austen, kjv]
    assert spec.to_mapping() == yaml.safe_load(best.read_text())
    assert run("merge", best, tmp_path / "tuned").exit_code == 0
    assert tensors_of(tmp_path / "tuned")


def test_search_moves_t_where_that_is_given(text: Path, tmp_path: Path) -> None:
    content = MEAN.replace("linear", "slerp").replace("tiny-base", "tiny-austen")
    (tmp_path / "t.yaml").write_text(content + "parameters: {t: 0.8}\n")
    result = run("merge", "search", tmp_path / "t.yaml", text, "--evaluations", 6, "--json")
    (t,) = json.loads(result.stdout)["numbers"]
    assert t < 0.8


def test_what_has_no_weights_is_not_tuned(mean: Path, text: Path, tmp_path: Path) -> None:
    mean.write_text(MEAN.replace("linear", "ema"))
    result = run("merge", "search", mean, text)
    assert result.exit_code == 1
    assert "expected weights" in result.stdout
    mean.write_text(MEAN.replace("tiny-kjv}", "tiny-kjv, parameters: {weight: [0, 1]}}"))
    result = run("merge", "search", mean, text)
    assert "not one per layer" in result.stdout


def test_reward_models_are_compared_on_pairs(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", make_pairs(12, seed=1, held_out=True))
    models = [make_ranker(tmp_path / n, architecture="llama", seed=s) for s, n in enumerate("ab")]
    (tmp_path / "r.yaml").write_text(
        f"{{merge_method: linear, models: [{{model: {models[0]}}}, {{model: {models[1]}}}]}}"
    )
    result = run("merge", tmp_path / "r.yaml", tmp_path / "out", "--compare", pairs, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["reward_model"]: row for row in json.loads(result.stdout)["compared"]}
    assert rows.keys() == {*map(str, models), "linear"}
    both = ("--model", models[0], "--model", tmp_path / "out")
    alone = run("eval", "rewards", pairs, *both, "--json")
    told = json.loads(alone.stdout)
    assert told["num_pairs"] == 12
    for row, name in zip(told["rewards"], (str(models[0]), "linear"), strict=True):
        assert row["accuracy"] == rows[name]["accuracy"]
        assert 0 <= row["agreement"] <= 1
    still = json.loads(run("eval", "rewards", pairs, *both, "--noise", 0, "--json").stdout)
    assert {row["agreement"] for row in still["rewards"]} == {1.0}
    texts = run("merge", tmp_path / "r.yaml", tmp_path / "no", "--compare", HELD_OUT / "kjv.txt")
    assert "pairs.jsonl" not in texts.stdout
    assert texts.exit_code == 1


def test_pairs_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a"}\n')
    result = run("eval", "rewards", file, "--model", "embedded:tiny-kjv")
    assert result.exit_code == 1
    assert f"{file}:2: expected an object of prompt, chosen and rejected" in result.stdout
