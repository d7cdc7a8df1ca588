"""`cuvee bench` as a user runs it, small: processes, load, rivals, files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import deployments.cli  # noqa: F401  # adds `bench`
from cluster.cli.main import app
from tests.rig import running

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from deployments.cli import main
main()
"""
SPEC = """
version: 1
members:
  austen: {model: embedded:tiny-austen, dtype: float32, kv_memory: 32MiB}
  kjv: {model: embedded:tiny-kjv, dtype: float32, kv_memory: 32MiB}
blends:
  tokens: {method: mixture, span: token, members: {austen: 0.5, kjv: 0.5}}
"""
NUM_TOKENS, NUM_PROMPT_WORDS = 6, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run left."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "pair.yaml").write_text(SPEC)
    command = f"bench {folder / 'pair.yaml'} --no-ray --rivals --rounds 2 --tokens {NUM_TOKENS}"
    command += f" --prompt-words {NUM_PROMPT_WORDS} --streams 1 --streams 2 --rate 20"
    command += f" --json {folder / 'run.json'} --picture {folder / 'run.svg'}"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, *command.split()],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "tables.md").write_text(done.stdout)
    return folder


def cases_of(folder: Path) -> dict[str, dict[str, Any]]:
    return cases_at(folder / "run.json")


def cases_at(file: Path) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads(file.read_text())["cases"]}


@pytest.mark.timeout(600)
def test_every_case_ran_in_every_round(folder: Path) -> None:
    cases = cases_of(folder)
    for name in ("austen", "kjv", "tokens"):
        assert {f"{name}, 1 stream", f"{name}, 2 streams"} <= cases.keys()
    assert "tokens, 20 requests/s" in cases
    assert "transformers generate: austen" in cases
    assert "our engine ensemble, parallel: tokens" in cases
    assert "a request for each token: tokens" in cases
    assert {len(case["rounds"]) for case in cases.values()} == {2}
    for case in cases.values():
        assert all(figures["tokens_per_s"] > 0 for figures in case["rounds"])


def test_counts_per_token_are_exact(folder: Path) -> None:
    cases = cases_of(folder)
    for figures in cases["austen, 1 stream"]["rounds"]:
        assert figures["passes"] == 1.0
        assert figures["steps"] == 1 / NUM_TOKENS  # a reply by one member is one step
        assert figures["messages"] * NUM_TOKENS >= 4  # it opens, steps, hears and closes
    # An ensemble feeds everything to both, as does the mixture, but for what comes after its end.
    ensemble = cases["our engine ensemble, sequential: tokens"]["rounds"]
    assert {figures["passes"] for figures in ensemble} == {2.0}
    for figures in cases["a request for each token: tokens"]["rounds"]:
        assert figures["steps"] == 1.0


def test_processors_are_told_apart(folder: Path) -> None:
    for figures in cases_of(folder)["tokens, 2 streams"]["rounds"]:
        assert figures["models_cpu_ms"] > 0
        assert figures["router_cpu_ms"] > 0
        assert figures["client_cpu_ms"] > 0


def test_tables_and_picture_tell_of_it(folder: Path) -> None:
    tables = (folder / "tables.md").read_text()
    assert "What blending costs" in tables
    assert "a sequential ensemble on our engine" in tables
    assert ElementTree.parse(folder / "run.svg").getroot().tag.endswith("svg")


async def test_a_cluster_that_runs_is_loaded_from_outside(tmp_path: Path) -> None:
    file = tmp_path / "far.json"
    async with running(SPEC) as rig:
        command = f"bench --address 127.0.0.1:{rig.edge.port} --rounds 1 --tokens 4 --clients 2"
        command += f" --replies 2 --streams 4 --json {file}"
        bench = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WITHOUT_RAY, *command.split(), stdout=subprocess.DEVNULL
        )
        assert await bench.wait() == 0
    assert {"austen, 4 streams", "kjv, 4 streams", "tokens, 4 streams"} == cases_at(file).keys()
    assert json.loads(file.read_text())["way"] == "elsewhere"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bench --blend owl --no-ray", "got owl; expected blends of: tokens, tokens-of-three"),
        ("bench --picture run.png", "got run.png; expected a file that ends in .svg"),
        ("bench --address 127.0.0.1:1 --rivals", "loaded as it is, without FILE or rivals"),
        ("bench --address 127.0.0.1:1", "127.0.0.1:1 cannot be asked"),
        ("bench no.yaml", "no.yaml: there is no such file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(command: str, words: str) -> None:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.replace("│", " ").split())
