"""`cuvee models`: what is here, bringing more here, and what is known of one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from cluster.cli import models as command
from cluster.cli.output import human_bytes, human_count, plain_number


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path))
    return tmp_path / "models"


def said(verb: Callable[..., int], *args: Any, as_json: bool = False) -> tuple[int, Any]:
    out = io.StringIO()
    code = verb(*args, as_json, Console(file=out, width=80))
    return code, json.loads(out.getvalue()) if as_json else out.getvalue()


def put_smollm2(home: Path) -> Path:
    """The least that passes for a fetched model: a link, a configuration, ten numbers."""
    folder = home / "smollm2-abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": torch.zeros(10, dtype=torch.bfloat16)}, folder / "model.safetensors")
    (home / "smollm2").symlink_to(folder.name)
    return folder


def test_the_list_names_what_is_missing_and_how_to_get_it(home: Path) -> None:
    code, out = said(command.list_models)
    assert code == 0
    assert "cuvee models fetch smollm2" in out
    assert str(home) in out


def test_the_list_gives_sizes_of_what_is_here(home: Path) -> None:
    put_smollm2(home)
    code, listed = said(command.list_models, as_json=True)
    assert code == 0
    (fetched,) = [m for m in listed["models"] if m["model"] == "fetched:smollm2"]
    assert (fetched["here"], fetched["num_parameters"], fetched["dtype"]) == (True, 10, "bfloat16")


@pytest.mark.parametrize("name", ["smollm2", "fetched:smollm2"])
def test_fetching_says_what_to_write_into_a_blend_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "fetch_smollm2", lambda progress: Path("/there"))
    code, out = said(command.fetch_model, name, None)
    assert code == 0
    assert "model: fetched:smollm2" in out
    code, fetched = said(command.fetch_model, name, None, as_json=True)
    assert fetched == {"ok": True, "model": "fetched:smollm2", "folder": "/there"}


def test_fetching_a_hub_repository_asks_for_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(model: str, revision: str | None, *, download: bool) -> Path:
        asked.append((model, revision, download))
        return Path("/snapshot")

    monkeypatch.setattr(command, "resolve", resolve)
    code, out = said(command.fetch_model, "org/name", "v1")
    assert (code, asked) == (0, [("org/name", "v1", True)])
    assert "model: org/name" in out


@pytest.mark.parametrize("name", ["gpt2", "embedded:tiny-austen", "./folder"])
def test_what_cannot_be_fetched_is_refused(name: str) -> None:
    code, out = said(command.fetch_model, name, None)
    assert code == 1
    assert "expected smollm2 or a hub repository org/name" in out


def test_an_unknown_model_is_an_error_in_words_and_in_json() -> None:
    code, out = said(command.show_model, "fetched:smollm2", None)
    assert (code, out.startswith("error: fetched:smollm2 is not here yet")) == (1, True)
    code, answer = said(command.show_model, "fetched:smollm2", None, as_json=True)
    assert (code, answer["ok"], answer["reason"]) == (1, False, "MODEL_NOT_FETCHED")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (8 << 20, "8 MiB"),
        (1000 << 20, "1000 MiB"),
        (3 << 29, "1.5 GiB"),
    ],
)
def test_bytes_are_shown_in_three_or_four_figures(num_bytes: int, text: str) -> None:
    assert human_bytes(num_bytes) == text


def test_counts_are_short_and_nothing_is_a_dash() -> None:
    assert [human_count(n) for n in (950, 2_160_000, 134_515_008)] == ["950", "2.16M", "135M"]
    assert [plain_number(n) for n in (0, 0.3, 2.0)] == ["–", "0.3", "2"]
