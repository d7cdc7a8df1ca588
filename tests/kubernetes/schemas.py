"""Kubernetes' own schemas, and those of the custom resources; both strict about unknown fields.

The custom ones are read from CUVEE_K8S_SCHEMAS, or from `shared/k8s-schemas` beside the repository:
a folder of CustomResourceDefinitions, as their projects release them.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from deployments.kubernetes.options import Object

KUBERNETES = "1.36"

_BESIDE = Path(__file__).parents[2].parent / "shared" / "k8s-schemas"
FOLDER = Path(os.environ.get("CUVEE_K8S_SCHEMAS", _BESIDE))


def problems_of(item: Object) -> list[str]:
    """What a strict API server would refuse."""
    group, _, _ = item["apiVersion"].rpartition("/")
    if ("." in group and not group.endswith(".k8s.io")) or group.startswith("gateway."):
        return _problems_of_custom(item)
    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _problems_of_custom(item: Object) -> list[str]:
    errors = _validator(item["apiVersion"], item["kind"]).iter_errors(item)
    found = [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]
    return found + [problem for pod in _pod_templates(item) for problem in _problems_of_pod(pod)]


def _problems_of_pod(template: Object) -> list[str]:
    """The schema of a RayService says little about the pods in it; Kubernetes' own says all."""
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {"name": "any", **template["metadata"]}
    return problems_of(pod)


def _pod_templates(item: Object) -> list[Object]:
    cluster = item["spec"].get("rayClusterConfig")
    if cluster is None:
        return []
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@cache
def _validator(api_version: str, kind: str) -> Any:
    for path in sorted(FOLDER.glob("*/*.yaml")):
        if kind.lower() not in path.name:
            continue
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)
        spec = definition["spec"]
        for version in spec["versions"]:
            if (
                api_version == f"{spec['group']}/{version['name']}"
                and kind == spec["names"]["kind"]
            ):
                schema = _strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}  # the API server's own
                return jsonschema.Draft202012Validator(schema)
    raise AssertionError(f"no schema of {api_version} {kind} in {FOLDER}")


def _strict(schema: Any) -> Any:
    """OpenAPI as Kubernetes means it, as JSON Schema: what is not named is not allowed."""
    found = dict(schema)
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    if found.pop("nullable", False) and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    if "properties" in found:
        found["properties"] = {name: _strict(part) for name, part in found["properties"].items()}
        is_open = found.get("x-kubernetes-preserve-unknown-fields", False)
        if "additionalProperties" not in found and not is_open:
            found["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(found.get(inner), dict):
            found[inner] = _strict(found[inner])
    return found
