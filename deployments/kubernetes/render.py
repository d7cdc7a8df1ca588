"""All objects of one installation, in the order in which they are to be made, and as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.spec import ClusterSpec
from deployments.kubernetes.monitoring import monitoring
from deployments.kubernetes.options import Object, RenderOptions
from deployments.kubernetes.policies import (
    disruption_budgets,
    installation_policies,
    namespace,
    network_policies,
    priority_classes,
    service_account,
)
from deployments.kubernetes.rayservice import rayservice
from deployments.kubernetes.storage import model_volume
from deployments.kubernetes.text import dump_yaml
from deployments.kubernetes.traffic import certificate, gateway, services

KUSTOMIZATION = "kustomization.yaml"


def render(spec: ClusterSpec, options: RenderOptions) -> list[Object]:
    """Everything; the same objects for the same file and options, always."""
    return [*environment(options), *installation(spec, options)]


def environment(options: RenderOptions) -> list[Object]:
    """What depends on no blend file."""
    return [
        namespace(options),
        service_account(options),
        *priority_classes(options),
        *network_policies(options),
        *services(options),
    ]


def installation(spec: ClusterSpec, options: RenderOptions) -> list[Object]:
    """What follows from the blend file, and the optional parts."""
    objects = [
        *model_volume(spec, options),
        *installation_policies(spec, options),
        *disruption_budgets(spec, options),
        rayservice(spec, options),
    ]
    if options.has("gateway"):
        objects += gateway(options)
    if options.has("certificate"):
        objects.append(certificate(options))
    if options.has("monitoring"):
        objects += monitoring(options)
    return objects


def to_yaml(objects: Iterable[Object]) -> str:
    """One stream of documents."""
    return "".join(f"---\n{dump_yaml(item)}" for item in objects)


def files_of(objects: Sequence[Object], resources: Sequence[str] = ()) -> dict[str, str]:
    """A Kustomize folder: one file for each kind, and the list of them after `resources`."""
    kinds = dict.fromkeys(item["kind"] for item in objects)
    files = {
        f"{kind.lower()}.yaml": to_yaml(item for item in objects if item["kind"] == kind)
        for kind in kinds
    }
    listed = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [*resources, *files],
    }
    return {KUSTOMIZATION: dump_yaml(listed), **files}


def write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write the files; others in the folder stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
