"""Rendered objects, and ways to find one's way in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from cluster.spec import ClusterSpec, load_spec, parse_spec
from deployments.kubernetes.options import Object
from deployments.kubernetes.overlays import FOLDER, OVERLAYS
from deployments.kubernetes.render import render

Objects = list[Object]


@cache
def spec_of(overlay: str) -> ClusterSpec:
    return load_spec(FOLDER / "overlays" / overlay / "blend.yaml")


@cache
def _rendered(overlay: str) -> Objects:
    return render(spec_of(overlay), OVERLAYS[overlay])


def objects_of(overlay: str) -> Objects:
    """One's own copy of all that an overlay has."""
    return copy.deepcopy(_rendered(overlay))


def of_kind(objects: Objects, kind: str) -> Objects:
    return [item for item in objects if item["kind"] == kind]


def one(objects: Objects, kind: str, name: str | None = None) -> Object:
    """The only one of its kind, or of its name."""
    (found,) = [
        item for item in of_kind(objects, kind) if name is None or item["metadata"]["name"] == name
    ]
    return found


def cluster_of(objects: Objects) -> Object:
    """The RayService's RayCluster."""
    found: Object = one(objects, "RayService")["spec"]["rayClusterConfig"]
    return found


def groups_of(objects: Objects) -> Objects:
    found: Objects = cluster_of(objects)["workerGroupSpecs"]
    return found


def group(objects: Objects, name: str) -> Object:
    (found,) = [item for item in groups_of(objects) if item["groupName"] == name]
    return found


def templates(objects: Objects) -> dict[str, Object]:
    """Every pod template, by its group."""
    workers = {item["groupName"]: item["template"] for item in groups_of(objects)}
    return {"head": cluster_of(objects)["headGroupSpec"]["template"], **workers}


def containers(objects: Objects) -> Iterator[tuple[str, Object]]:
    """The Ray container of every template."""
    for name, template in templates(objects).items():
        yield name, template["spec"]["containers"][0]


def selected(objects: Objects, selector: dict[str, Any]) -> set[str]:
    """The groups whose pods have all these labels."""
    return {
        name
        for name, template in templates(objects).items()
        if selector.items() <= template["metadata"]["labels"].items()
    }


def serve_config(objects: Objects) -> Object:
    config: Object = yaml.safe_load(one(objects, "RayService")["spec"]["serveConfigV2"])
    return config


def served_spec(objects: Objects) -> ClusterSpec:
    """The blend file as routers in pods get it."""
    (application,) = serve_config(objects)["applications"]
    return parse_spec(application["args"]["spec"])
