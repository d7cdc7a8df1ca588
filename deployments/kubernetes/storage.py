"""Where models that are not in the image lie: one volume for all pools."""

from __future__ import annotations

from cluster.spec import ClusterSpec
from deployments.kubernetes.options import Object, RenderOptions
from deployments.kubernetes.site import needs_volume


def model_volume(spec: ClusterSpec, options: RenderOptions) -> list[Object]:
    """A claim that outlives every RayCluster: what one replica has fetched, the next one finds."""
    if not needs_volume(spec):
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": options.metadata("models", component="models"),
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": options.storage}},
            },
        }
    ]
