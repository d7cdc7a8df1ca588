"""From any blend file to objects: the same ones always, and the ones in the repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.errors import InvalidRequest
from cluster.spec import parse_spec
from deployments.cli import app
from deployments.kubernetes.options import RenderOptions
from deployments.kubernetes.overlays import FOLDER, OVERLAYS, rendered
from deployments.kubernetes.render import files_of, render, to_yaml
from tests.kubernetes.objects import Objects, group, objects_of, served_spec, templates
from tests.kubernetes.rules import RULES
from tests.kubernetes.schemas import FOLDER as SCHEMAS
from tests.kubernetes.schemas import problems_of

KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
ODD_NAMES = ["no", "y", "null", "gpu", "e1", "a" * 40, "head", "router", "x-1", "cpu"]


def blend_file(num_members: int, fields: str = "model: embedded:tiny-austen") -> str:
    members = "".join(f"  '{name}': {{{fields}}}\n" for name in ODD_NAMES[:num_members])
    weights = ", ".join(f"'{name}': 1" for name in ODD_NAMES[:num_members])
    blend = f"blends: {{'on': {{method: mixture, members: {{{weights}}}}}}}\n"
    return f"version: 1\nmembers:\n{members}{blend}"


def rendering(fields: str, more: str = "", **options: Any) -> Objects:
    return render(parse_spec(blend_file(1, fields) + more), RenderOptions(**options))


def pod(objects: Objects, name: str = "member-no") -> Any:
    return templates(objects)[name]["spec"]


def test_what_lies_in_the_repository_is_what_is_rendered() -> None:
    """`make k8s` writes it again."""
    for path, text in rendered().items():
        assert (FOLDER / path).read_text() == text, f"k8s/{path} is out of date: run make k8s"
    blends = {f"overlays/{overlay}/blend.yaml" for overlay in OVERLAYS}
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("**/*.yaml")}
    assert found == rendered().keys() | blends


@pytest.mark.skipif(KUBECTL is None, reason="no kubectl here")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_from_the_overlay_what_render_gives(overlay: str) -> None:
    command = [str(KUBECTL), "kustomize", str(FOLDER / "overlays" / overlay)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def by_name(objects: Objects) -> dict[tuple[str, str], Any]:
        return {(item["kind"], item["metadata"]["name"]): item for item in objects}

    assert by_name(list(yaml.safe_load_all(built))) == by_name(objects_of(overlay))


@pytest.mark.parametrize("num_members", range(1, 11))
def test_one_to_ten_members_of_odd_names_give_the_same_valid_objects(num_members: int) -> None:
    text = blend_file(num_members, "model: org/any, resources: {num_gpus: 1}")
    objects = render(parse_spec(text), RenderOptions())
    assert to_yaml(objects) == to_yaml(render(parse_spec(text), RenderOptions()))
    assert [found for check in RULES.values() for found in check(objects)] == []
    assert list(yaml.safe_load_all(to_yaml(objects))) == objects
    assert list(served_spec(objects).members) == ODD_NAMES[:num_members]
    if SCHEMAS.is_dir() and num_members == len(ODD_NAMES):  # all the names there are
        assert [problem for item in objects for problem in problems_of(item)] == []


def test_two_processes_render_the_same_text(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(blend_file(3))
    code = "from deployments.cli import main; main()"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, "render", "k8s", str(file)],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].startswith(b"---\napiVersion: v1\nkind: Namespace\n")


def test_replicas_of_a_share_of_a_gpu_share_pods() -> None:
    fields = "model: org/a, resources: {num_cpus: 2, num_gpus: 0.25, memory: 2GiB}"
    found = rendering(f"{fields}, autoscaling: {{min_replicas: 2, max_replicas: 9}}")
    pool = group(found, "member-no")
    assert (pool["minReplicas"], pool["maxReplicas"]) == (1, 3)
    assert pool["resources"] == {"CPU": "8", "GPU": "1", "member-no-slot": "4"}
    limits = pod(found)["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert limits["memory"] == f"{4 * 2048 + 768}Mi"


def test_a_split_member_has_all_its_gpus_in_one_pod() -> None:
    found = rendering("model: org/a, replicas: 2, resources: {num_gpus: 4}")
    assert group(found, "member-no")["resources"]["GPU"] == "4"
    assert pod(found)["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "4"
    assert pod(found)["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_kinds_of_gpu_and_labels_choose_nodes() -> None:
    fields = "num_gpus: 1, accelerator_type: L4, max_per_node: 1, labels: {LABELS}"
    labels = "zone: east, disk: '!slow', room: 'in(a, b)'"
    found = rendering(f"model: org/a, resources: {{{fields.replace('LABELS', labels)}}}")
    affinity = pod(found)["affinity"]
    rules = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rules["nodeSelectorTerms"][0]["matchExpressions"] == [
        {"key": "zone", "operator": "In", "values": ["east"]},
        {"key": "disk", "operator": "NotIn", "values": ["slow"]},
        {"key": "room", "operator": "In", "values": ["a", "b"]},
        {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]},
    ]
    assert "podAntiAffinity" in affinity
    asked = served_spec(found).members["no"].resources
    assert (dict(asked.labels), asked.accelerator_type) == ({}, None)  # Kubernetes has chosen


def test_a_member_may_sleep_and_a_volume_is_there_when_one_is_needed() -> None:
    asleep = rendering("model: org/a, autoscaling: {min_replicas: 0, max_replicas: 2}")
    assert group(asleep, "member-no")["minReplicas"] == 0
    assert "PersistentVolumeClaim" in {item["kind"] for item in asleep}
    embedded = rendering("model: embedded:tiny-austen")
    assert "PersistentVolumeClaim" not in {item["kind"] for item in embedded}


@pytest.mark.parametrize(
    ("fields", "more", "field"),
    [
        ("model: /home/me/model", "", "members.no.model"),
        (
            "model: embedded:x",
            "serving: {tls: {certificate: /c, key: /k, client_ca: /a}}\n",
            "serving.tls.client_ca",
        ),
    ],
)
def test_what_pods_cannot_have_is_refused_by_its_field(fields: str, more: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        rendering(fields, more)
    assert refused.value.field == field
    assert "expected" in refused.value.message


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("name", "Cuvee"),
        ("name", "c" * 48),
        ("namespace", "1st"),
        ("image", "cuvee"),
        ("image", "cuvee:latest"),
        ("parts", frozenset({"helm"})),
        ("api_server", "everywhere"),
        ("redis_address", "redis"),
    ],
)
def test_wrong_options_are_refused(option: str, given: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        RenderOptions(**{option: given})


def test_images_by_digest_and_from_registries_with_ports_are_taken() -> None:
    for image in (f"registry:5000/cuvee@sha256:{'0' * 64}", "registry:5000/a/cuvee:1.2"):
        found = rendering("model: embedded:x", image=image, name="other")
        assert pod(found)["containers"][0]["image"] == image
        assert {i["metadata"]["name"] for i in found if i["kind"] == "RayService"} == {"other"}


def test_the_command_writes_a_folder_a_stream_or_json(tmp_path: Path) -> None:
    file, folder = tmp_path / "blend.yaml", tmp_path / "out"
    file.write_text(blend_file(2))
    expected = render(parse_spec(file.read_text()), RenderOptions(namespace="here"))
    run = CliRunner().invoke
    given = ["render", "k8s", str(file), "--namespace", "here"]
    assert list(yaml.safe_load_all(run(app, given).stdout)) == expected
    assert json.loads(run(app, [*given, "--json"]).stdout)["items"] == expected
    done = run(app, [*given, "--out", str(folder)])
    assert done.exit_code == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == files_of(expected)


def test_a_bad_file_gives_the_specs_own_errors(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(blend_file(1).replace("mixture", "mixtur"))
    done = CliRunner().invoke(app, ["render", "k8s", str(file)])
    assert done.exit_code == 2
    assert f"{file}:4: blends.on.method: got 'mixtur'" in done.stderr
    missing = CliRunner().invoke(app, ["render", "k8s", str(tmp_path / "none"), "--json"])
    assert json.loads(missing.stdout)["reason"] == "SPEC_NOT_FOUND"
    wrong = CliRunner().invoke(app, ["render", "k8s", str(file), "--image", "cuvee"])
    assert wrong.exit_code != 0


def test_memory_that_nobody_gave_is_told(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(blend_file(1, "model: org/a, resources: {num_gpus: 1}"))
    done = CliRunner().invoke(app, ["render", "k8s", str(file)])
    assert "members.no.resources.memory: not given" in done.stderr
