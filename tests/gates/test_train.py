"""Gates learn what can be learned, say so truly, and read what the engine will show them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cluster.blending.gates import Network
from cluster.cli.main import app
from cluster.errors import InvalidRequest, Unsupported
from cluster.gates.examples import Example, read_examples
from cluster.gates.features import Features, Row
from cluster.gates.file import GateInputs, load_gate, save_gate
from cluster.gates.train import train
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.spec import ClusterSpec, RouteSpec, parse_spec
from cluster.text.chat import Message
from cluster.text.member import MemberText

NAMES = ("austen", "kjv", "bierce")
THREE = "{austen: 1, kjv: 1, bierce: 1}"


def spec(folder: Path, more: str = "") -> ClusterSpec:
    return parse_spec(f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, dtype: float32}}
  kjv: {{model: embedded:tiny-kjv, dtype: float32}}
  bierce: {{model: embedded:tiny-bierce, dtype: float32}}
  bytes: {{model: embedded:tiny-bytes, dtype: float32}}
blends:
  whole: {{method: route, span: response, members: {THREE}{more},
          gate: {{by: learned, file: {folder}/whole.gate, reader: kjv}}}}
  words: {{method: route, span: word, members: {THREE},
          gate: {{by: learned, file: {folder}/words.gate, reader: kjv}}}}
  tokens: {{method: route, members: {THREE},
           gate: {{by: learned, file: {folder}/tokens.gate, reader: kjv}}}}
  unlike: {{method: route, members: {{austen: 1, bytes: 1}},
           gate: {{by: learned, file: {folder}/unlike.gate, reader: austen}}}}
  keys: {{method: route, members: {THREE}, gate: {{by: keywords, otherwise: kjv,
         rules: [{{match: x, member: kjv}}]}}}}
""")


def route(of: ClusterSpec, name: str) -> RouteSpec:
    found = of.blends[name]
    assert isinstance(found, RouteSpec)
    return found


def synthetic(num: int, seed: int) -> list[list[Row]]:
    """The best of three members is a fixed linear function of what is read, with some noise."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(size=(3, 8))
    found = []
    for _ in range(num):
        features = (rng.normal(size=8) * 3 + 1).astype(np.float32)
        logliks = truth @ features + rng.gumbel(size=3)
        found.append([Row(features, logliks)])
    return found


@pytest.mark.parametrize("num_hidden", [0, 16])
def test_what_is_linear_is_found(num_hidden: int) -> None:
    network, report = train(
        synthetic(600, 0), num_hidden=num_hidden, held_out=0.25, seed=1, progress=lambda _: None
    )
    assert (report.num_examples, report.num_rows) == (150, 150)
    assert report.accuracy > 0.85 > report.most_common
    assert report.loss < 0.5 * report.constant_loss
    fresh = [row for rows in synthetic(500, 7) for row in rows]
    right = [network.logits(row.features).argmax() == row.logliks.argmax() for row in fresh]
    assert np.mean(right) == pytest.approx(report.accuracy, abs=0.08), "as good as it says"


def test_noise_is_reported_as_noise() -> None:
    rng = np.random.default_rng(3)
    rows = [[Row(rng.normal(size=8).astype(np.float32), rng.normal(size=3))] for _ in range(400)]
    _, report = train(rows, num_hidden=0, held_out=0.5, seed=0, progress=lambda _: None)
    assert report.accuracy < 0.45
    assert report.loss > report.constant_loss - 0.02


def test_training_repeats_itself() -> None:
    first, _ = train(synthetic(50, 0), num_hidden=4, held_out=0.2, seed=5, progress=lambda _: None)
    again, _ = train(synthetic(50, 0), num_hidden=4, held_out=0.2, seed=5, progress=lambda _: None)
    for (w1, b1), (w2, b2) in zip(first.layers, again.layers, strict=True):
        np.testing.assert_array_equal(w1, w2)
        np.testing.assert_array_equal(b1, b2)


def test_rows_against_transformers(tmp_path: Path) -> None:
    """One row per span: the state before it, and what each member makes of it."""
    text = MemberText.load(resolve("embedded:tiny-kjv", download=False))
    example = Example(Prompt(text="And it came"), " to pass in those days", None)
    prompt = text.render("And it came", None)
    reply = text.canonical.encode(" to pass in those days")
    laws, states = {}, np.empty(0)
    for name in NAMES:
        folder = resolve(f"embedded:tiny-{name}", download=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.inference_mode():
            output = model(torch.tensor([prompt + reply]), output_hidden_states=True)
        laws[name] = output.logits[0].log_softmax(dim=-1).numpy()
        if name == "kjv":
            states = output.hidden_states[-1][0].numpy()
    logprobs = np.array(
        [
            [laws[name][len(prompt) + i - 1, token] for i, token in enumerate(reply)]
            for name in NAMES
        ]
    )
    given = spec(tmp_path)
    rows = list(Features(given, route(given, "tokens")).rows(example))
    assert len(rows) == len(reply)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(row.features, states[len(prompt) + i - 1], atol=1e-4)
        np.testing.assert_allclose(row.logliks, logprobs[:, i], atol=1e-4)
    words = list(Features(given, route(given, "words")).rows(example))
    assert len(words) == 5
    np.testing.assert_allclose(sum(row.logliks for row in words), logprobs.sum(axis=1), atol=1e-4)
    whole = Features(given, route(given, "whole"))
    (row,) = whole.rows(example)
    np.testing.assert_allclose(row.features, states[len(prompt) - 1], atol=1e-4)
    np.testing.assert_allclose(row.logliks, logprobs.sum(axis=1), atol=1e-4)
    (row,) = whole.rows(Example(Prompt(text="And it came"), None, "bierce"))
    assert row.logliks.tolist() == [-np.inf, -np.inf, 0.0]
    with pytest.raises(Unsupported, match="several vocabularies"):
        Features(given, route(given, "unlike"))


def test_a_gate_comes_back_as_it_was_written(tmp_path: Path) -> None:
    given = spec(tmp_path)
    inputs = GateInputs.of(given, route(given, "whole"))
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=4).astype(np.float32)),
        (rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=3).astype(np.float32)),
    ]
    save_gate(tmp_path / "a.gate", Network(layers), inputs)
    gate = load_gate(tmp_path / "a.gate", inputs)
    features = rng.normal(size=6)
    np.testing.assert_array_equal(gate.network.logits(features), Network(layers).logits(features))
    save_gate(tmp_path / "b.gate", Network(layers[:1]), inputs)
    assert load_gate(tmp_path / "b.gate", inputs).digest != gate.digest
    with pytest.raises(Unsupported, match="was trained for") as caught:
        load_gate(tmp_path / "a.gate", GateInputs.of(given, route(given, "unlike")))
    assert caught.value.reason == "GATE_MISMATCH"


def test_examples_are_read_and_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"prompt": "a", "member": "kjv"}\n\n'
        '{"messages": [{"role": "user", "content": "b"}], "reply": "c"}\n'
    )
    assert read_examples(path, NAMES) == [
        Example(Prompt(text="a"), None, "kjv"),
        Example(Prompt(messages=(Message("user", "b"),)), "c", None),
    ]
    for line, words in [
        ("nothing", "no JSON"),
        ("[]", "an object with keys"),
        ('{"prompt": "a"}', "expected member"),
        ('{"prompt": "a", "member": "bob"}', "got member 'bob'"),
        ('{"prompt": "", "member": "kjv"}', "expected prompt"),
        ('{"member": "kjv"}', "expected prompt"),
        ('{"prompt": "a", "reply": 3}', "reply to be text"),
        ('{"messages": [{"role": "x", "content": "b"}], "reply": "c"}', "expected prompt"),
        ('{"prompt": "a", "member": "kjv", "weight": 1}', "an object with keys"),
    ]:
        path.write_text(f'{{"prompt": "a", "member": "kjv"}}\n{line}\n')
        with pytest.raises(InvalidRequest, match=words) as caught:
            read_examples(path, NAMES)
        assert f"{path}:2: " in caught.value.message


def test_the_command_trains_and_reports(tmp_path: Path) -> None:
    """Prompts in two styles, each with its member: held-out prompts are told apart."""
    held_out = resolve("embedded:tiny-kjv", download=False).parent / "held_out"
    lines = []
    for name in ("austen", "kjv"):
        text = (held_out / f"{name}.txt").read_text()
        lines += [
            json.dumps({"prompt": text[i : i + 150], "member": name})
            for i in range(0, 40 * 150, 150)
        ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "blend.yaml").write_text(
        "version: 1\n"
        "members:\n"
        "  austen: {model: embedded:tiny-austen, dtype: float32}\n"
        "  kjv: {model: embedded:tiny-kjv, dtype: float32}\n"
        "blends:\n"
        "  styles: {method: route, span: response, members: {austen: 1, kjv: 1},\n"
        "           gate: {by: learned, file: styles.gate, reader: austen}}\n"
    )
    arguments = ["gate", "train", str(tmp_path / "blend.yaml"), str(tmp_path / "data.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["file"] == str(tmp_path / "styles.gate")
    assert report["num_examples"] == 16
    assert report["accuracy"] >= 0.8
    assert (tmp_path / "styles.gate").stat().st_size < 4096, "a gate is a small file"
    result = CliRunner().invoke(app, [*arguments, "-b", "nobody"])
    assert result.exit_code == 1
    assert "styles" in result.output
