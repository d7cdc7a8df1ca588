"""An overlay's objects with the pods inside its RayService as Pods, for scanners.

python -m tests.kubernetes.extract production > pods.yaml
checkov --framework kubernetes --file pods.yaml
"""

from __future__ import annotations

import sys

from deployments.kubernetes.render import to_yaml
from tests.kubernetes.objects import objects_of, templates


def main() -> None:
    """To stdout."""
    objects = objects_of(sys.argv[1])
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": f"cuvee-{name}", "namespace": "cuvee"},
            "spec": template["spec"],
        }
        for name, template in templates(objects).items()
    ]
    sys.stdout.write(to_yaml([*objects, *pods]))


if __name__ == "__main__":
    main()
