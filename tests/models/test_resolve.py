"""From the names in blend files to folders, and the refusals on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import CuveeError, InvalidRequest, NotFound, Unavailable, Unsupported
from cluster.models import resolve as module
from cluster.models.reference import ModelKind, ModelReference
from cluster.models.resolve import fetched_names, models_home, resolve


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def model_folder(folder: Path, *weights: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name in weights:
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("embedded:tiny-austen", ModelKind.EMBEDDED, "tiny-austen"),
        ("fetched:smollm2", ModelKind.FETCHED, "smollm2"),
        ("./a/b", ModelKind.FOLDER, "./a/b"),
        ("../a", ModelKind.FOLDER, "../a"),
        ("~/a", ModelKind.FOLDER, "~/a"),
        ("/a", ModelKind.FOLDER, "/a"),
        (".", ModelKind.FOLDER, "."),
        ("HuggingFaceTB/SmolLM2-135M", ModelKind.HUB, "HuggingFaceTB/SmolLM2-135M"),
    ],
)
def test_spelling_alone_decides_the_kind(text: str, kind: ModelKind, name: str) -> None:
    assert ModelReference.parse(text) == ModelReference(kind, name)


@pytest.mark.parametrize("text", ["", "gpt2", "embedded:", "embedded:../x", "a/b/c", "x:y", " ./a"])
def test_other_spellings_are_refused_naming_the_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(text, download=False)
    assert (caught.value.reason, caught.value.field) == ("MODEL_NAME_INVALID", "model")


def test_a_folder_with_safetensors_resolves_to_itself(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "model.safetensors", "pytorch_model.bin")
    assert resolve(str(folder), download=False) == folder


def refusal(model: object, error: type[CuveeError], reason: str) -> str:
    with pytest.raises(error) as caught:
        resolve(str(model), download=False)
    assert caught.value.reason == reason
    return caught.value.message


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "pytorch_model.bin", "extra.pt")
    message = refusal(folder, Unsupported, "WEIGHTS_NOT_SAFETENSORS")
    assert "holds only extra.pt, pytorch_model.bin; expected model.safetensors" in message


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    message = refusal(model_folder(tmp_path / "m"), Unsupported, "WEIGHTS_NOT_SAFETENSORS")
    assert "holds no weights" in message


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "none", NotFound, "MODEL_NOT_FOUND")


def test_a_folder_without_configuration_is_not_found(tmp_path: Path) -> None:
    assert "holds no config.json" in refusal(tmp_path, NotFound, "MODEL_NOT_FOUND")


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "it is an adapter" in refusal(tmp_path, NotFound, "MODEL_NOT_FOUND")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(folder, NotFound, "WEIGHTS_INCOMPLETE")
    assert "lacks model-2.safetensors" in message


def test_embedded_names_are_listed_when_one_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EMBEDDED", tmp_path)
    folder = model_folder(tmp_path / "tiny-a", "model.safetensors")
    assert resolve("embedded:tiny-a", download=False) == folder
    message = refusal("embedded:tiny-b", NotFound, "MODEL_NOT_FOUND")
    assert "expected one of embedded:tiny-a" in message


def test_a_fetched_model_is_found_through_its_link(home: Path) -> None:
    folder = model_folder(home / "smollm2-abc", "model.safetensors")
    (home / "smollm2").symlink_to("smollm2-abc")
    assert fetched_names() == ("smollm2",)
    assert resolve("fetched:smollm2", download=False) == folder.resolve()


def test_an_unfetched_model_names_the_command() -> None:
    message = refusal("fetched:smollm2", NotFound, "MODEL_NOT_FETCHED")
    assert "cuvee models fetch smollm2" in message
    message = refusal("fetched:other", NotFound, "MODEL_NOT_FOUND")
    assert "expected one of fetched:smollm2" in message


def test_the_home_of_models_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUVEE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_home() == tmp_path / "cuvee" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_home() == tmp_path / ".cache" / "cuvee" / "models"


class FakeHub:
    """Stands in for `snapshot_download`: records what is asked, answers or fails as told."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.asked: dict[str, object] = {}

    def __call__(self, name: str, **asked: object) -> str:
        self.asked = {"name": name, **asked}
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def test_the_hub_is_asked_for_one_revision_and_safe_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(model_folder(tmp_path / "m", "model.safetensors"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert resolve("org/name", "abc", download=True) == tmp_path / "m"
    assert (hub.asked["name"], hub.asked["revision"]) == ("org/name", "abc")
    assert hub.asked["local_files_only"] is False
    patterns = str(hub.asked["allow_patterns"])
    assert "model*.safetensors" in patterns
    assert ".bin" not in patterns
    assert ".py" not in patterns


def test_the_hubs_failures_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    monkeypatch.setattr("huggingface_hub.snapshot_download", FakeHub(LocalEntryNotFoundError("x")))
    message = refusal("org/name", NotFound, "MODEL_NOT_FETCHED")
    assert "run: cuvee models fetch org/name" in message

    for failure in (LocalEntryNotFoundError("x"), OfflineModeIsEnabled("x"), OSError("x")):
        monkeypatch.setattr("huggingface_hub.snapshot_download", FakeHub(failure))
        with pytest.raises(Unavailable, match="the hub cannot be reached"):
            resolve("org/name", download=True)


def test_an_empty_cache_needs_no_network_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refusal("org/name", NotFound, "MODEL_NOT_FETCHED")
