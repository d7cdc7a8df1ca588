"""Merges inside a blend file: built once, found again, checked without building, served."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.cli.check import check
from cluster.errors import SpecError, Unsupported
from cluster.merging.cache import cached_folder, folder_of
from cluster.models.resolve import resolve
from cluster.spec import ClusterSpec, MemberSpec, parse_spec
from cuvee.v1 import generation_pb2 as pb
from deployments.app import application
from tests.merging.factories import make_family
from tests.rig import running

TINY = "dtype: float32, kv_memory: 32MiB"
MEAN = "{merge_method: linear, models: [{model: embedded:tiny-austen}, {model: embedded:tiny-kjv}]}"
STACK = """{merge_method: passthrough, slices: [
  {sources: [{model: embedded:tiny-austen, layer_range: [0, 3]}]},
  {sources: [{model: embedded:tiny-kjv, layer_range: [2, 5]}]}]}"""
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  mean: {{model: {{merge: {MEAN}}}, {TINY}}}
  stack: {{model: {{merge: {STACK}}}, {TINY}}}
blends:
  all: {{method: mixture, members: {{austen: 1, mean: 1, stack: 1}}}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models" / ".merged"


def member(recipe: str) -> MemberSpec:
    text = f"version: 1\nmembers: {{m: {{model: {{merge: {recipe}}}}}}}\n"
    return parse_spec(text + "blends: {b: {method: mixture, members: {m: 1}}}").members["m"]


def test_a_spec_with_merges_travels_as_data() -> None:
    spec = parse_spec(SPEC)
    assert ClusterSpec.model_validate(json.loads(json.dumps(spec.to_mapping()))) == spec
    assert spec.members["mean"].model_name.startswith("merge:linear-")
    assert spec.members["mean"].reference is None
    other = parse_spec(SPEC.replace("tiny-kjv}]", "tiny-bierce}]"))
    assert other.revision_of("all") != spec.revision_of("all")


def test_mistakes_within_a_merge_are_told_with_their_place() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC.replace("merge_method: linear", "merge_method: lineer"), name="f.yaml")
    assert caught.value.message.startswith("f.yaml:5: members.mean.model.merge.merge_method: got")
    with pytest.raises(SpecError, match="expected no revision here"):
        parse_spec(SPEC.replace(f"{MEAN}}}", f"{MEAN}}}, revision: main"))


def test_what_a_merge_is_made_of_decides_where_it_is_kept(tmp_path: Path, home: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    spec = member(f"{{merge_method: linear, models: [{{model: {a}}}, {{model: {b}}}]}}")
    folder = folder_of(spec, download=False)
    made = folder.stat()
    assert folder.parent == home
    assert folder_of(spec, download=False).stat().st_mtime_ns == made.st_mtime_ns
    moved = tmp_path / "elsewhere"
    shutil.copytree(a, moved)  # the same content at another place is the same input
    same = member(f"{{merge_method: linear, models: [{{model: {moved}}}, {{model: {b}}}]}}")
    assert folder_of(same, download=False) == folder
    for other in (
        f"{{merge_method: linear, models: [{{model: {b}}}, {{model: {a}}}]}}",
        f"{{merge_method: slerp, models: [{{model: {a}}}, {{model: {b}}}]}}",
        f"{{merge_method: linear, models: [{{model: {a}}}, {{model: {b}, parameters: "
        "{weight: 2}}]}",
    ):
        recipe = member(other).model.merge  # type: ignore[union-attr]
        assert cached_folder(recipe, download=False) != folder
    weights = (b / "model.safetensors").read_bytes()
    (b / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert folder_of(spec, download=False) != folder


def _build(spec: MemberSpec) -> tuple[str, int]:
    torch.set_num_threads(1)
    folder = folder_of(spec, download=False)
    return str(folder), (folder / "model.safetensors").stat().st_ino


def test_processes_that_want_the_same_merge_share_one(tmp_path: Path, home: Path) -> None:
    _, (a, b) = make_family(tmp_path)
    spec = member(f"{{merge_method: linear, models: [{{model: {a}}}, {{model: {b}}}]}}")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_build, [spec] * 3)
    assert len(set(found)) == 1
    assert [path.suffix for path in home.iterdir() if path.is_file()] == [".lock"]
    assert len([path for path in home.iterdir() if path.is_dir()]) == 1


def test_check_builds_nothing_and_knows_all(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(SPEC)
    out = io.StringIO()
    assert check(file, True, Console(file=out, width=80)) == 0
    told = json.loads(out.getvalue())["members"]
    assert not home.exists()
    assert told["mean"]["num_parameters"] == told["austen"]["num_parameters"]
    assert told["stack"]["num_parameters"] > told["austen"]["num_parameters"]
    assert told["stack"]["vocabulary"] == told["austen"]["vocabulary"]
    assert told["mean"]["model"].startswith("merge:linear-")


def test_check_tells_what_up_would_refuse(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(SPEC.replace("tiny-kjv}]", "tiny-bytes}]"))
    out = io.StringIO()
    assert check(file, False, Console(file=out, width=300)) == 1
    assert "members.mean: embedded:tiny-austen and embedded:tiny-bytes have" in out.getvalue()


def test_the_builder_of_the_application_merges_first(home: Path) -> None:
    application(parse_spec(SPEC))
    assert len([path for path in home.iterdir() if path.is_dir()]) == 2


def test_a_merge_that_cannot_be_is_refused_before_replicas(home: Path) -> None:
    with pytest.raises(Unsupported):
        application(parse_spec(SPEC.replace("tiny-kjv}]", "tiny-bytes}]")))
    assert not [path for path in home.iterdir() if path.is_dir()]


async def test_merged_and_stacked_members_are_served_beside_others() -> None:
    """Each member's share of a blend's reply is what plain transformers say of its folder."""
    async with running(SPEC) as rig:
        request = pb.ScoreRequest(
            blend="all", prompt="It is a truth", continuation=" and the LORD said"
        )
        answer = await rig.generation.Score(request)
        reply = await rig.generation.Generate(
            pb.GenerateRequest(
                blend="all",
                prompt="It is a truth",
                sampling={"seed": 3},
                stopping={"max_tokens": 40},
            )
        )
        folders = {name: folder_of(m, download=False) for name, m in rig.spec.members.items()}
    assert {token.member for token in reply.tokens} == {"austen", "mean", "stack"}
    for told in answer.members:
        expected = plain_logprob(folders[told.member], request.prompt, request.continuation)
        assert told.logprob == pytest.approx(expected, abs=1e-3)


@torch.inference_mode()
def plain_logprob(folder: Path, prompt: str, continuation: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = tokenizer(prompt).input_ids
    ids = before + tokenizer(continuation, add_special_tokens=False).input_ids
    laws = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(laws[i - 1, ids[i]]) for i in range(len(before), len(ids)))


def test_embedded_inputs_need_no_home_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only results are kept there; of hashes one may forget."""
    from cluster.merging.digests import digest_of

    monkeypatch.setenv("CUVEE_HOME", os.devnull)
    folder = resolve("embedded:tiny-kjv", download=False)
    assert len(digest_of(folder, "kjv")) == 64
