"""Overlays' Serve configurations on a real Ray cluster, by `serve deploy`; as JSON.

A process of its own, since one process is connected to one Ray cluster at a time. Two nodes offer
what two pods of every pool do, as logical resources, and want Ray's token, as pods do. There are no
GPUs and no hub here, so models are tiny ones on CPUs; ports and files are this machine's. All else
is as it is rendered.

    python -m tests.kubernetes.serving_overlays FOLDER
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.access.keys import LimitsEntry, add_key, new_key
from cuvee.v1 import generation_pb2 as pb
from cuvee.v1 import generation_pb2_grpc
from deployments.kubernetes.overlays import OVERLAYS
from deployments.local import set_environment
from tests.deployments.conftest import free_port
from tests.kubernetes.objects import groups_of, objects_of, serve_config
from tests.rankers.checkpoints import make_ranker

TINY = {"model": "embedded:tiny-austen", "dtype": "float32", "kv_memory": "32MiB"}
READY_TIMEOUT_S = 240.0
DEPLOYED = ("local", "production")  # which has all that `gpu` has


def main() -> None:
    """Start the nodes, deploy one after the other, leave nothing."""
    folder, said = Path(sys.argv[1]), {}
    set_environment()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from ray.cluster_utils import Cluster

    dashboard, metrics = free_port(), free_port()
    cluster = Cluster()
    local = {"node_ip_address": "127.0.0.1", "include_dashboard": False, **_offered()}
    try:
        head = {"dashboard_host": "127.0.0.1", "dashboard_port": dashboard}
        cluster.add_node(
            **local | head | {"include_dashboard": True, "metrics_export_port": metrics}
        )
        cluster.add_node(**local)
        for overlay in DEPLOYED:
            site = Site(folder / overlay, f"http://127.0.0.1:{dashboard}", metrics)
            said[overlay] = site.try_out(overlay)
        json.dump(said, sys.stdout)
    finally:
        cluster.shutdown()


def _offered() -> dict[str, Any]:
    """What one pod of each pool of all overlays offers together, GPUs left out."""
    amounts: dict[str, float] = {}
    for overlay in OVERLAYS:
        for group in groups_of(objects_of(overlay)):
            for name, amount in group["resources"].items():
                amounts[name] = amounts.get(name, 0.0) + float(amount)
    del amounts["GPU"]
    return {"num_cpus": amounts.pop("CPU"), "resources": amounts}


class Site:
    """One overlay's configuration, for this machine."""

    def __init__(self, folder: Path, ray: str, node_metrics_port: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._ray = ray
        self._node_metrics_port = node_metrics_port
        self._port, self._metrics_port = free_port(), free_port()
        made = new_key("all", ("generate", "metrics"), LimitsEntry())
        add_key(folder / "keys.yaml", "all", made.entry)
        self._key = made.text

    def try_out(self, overlay: str) -> dict[str, Any]:
        """Deploy, call, read the metrics."""
        config = serve_config(objects_of(overlay))
        arguments = config["applications"][0]["args"]
        arguments["spec"] = self._here(arguments["spec"])
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        serve = [str(Path(sys.executable).parent / "serve"), "deploy", str(file), "-a", self._ray]
        subprocess.run(serve, check=True, capture_output=True)
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            self._await_health(channel)
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = pb.GenerateRequest(
                prompt="It is",
                stopping={"max_tokens": 24, "ignore_eos": True},
                sampling={"seed": 7},
            )
            bearer = (("authorization", f"Bearer {self._key}"),)
            reply = stub.Generate(request, metadata=bearer, timeout=120)
        return {
            "num_tokens": len(reply.tokens),
            "members": sorted({token.member for token in reply.tokens}),
            "drawn": self._drawn(),
            "told_by_ray": self._told_by_ray(),
        }

    def _here(self, text: str) -> str:
        """The blend file, with tiny models on CPUs, and this machine's ports and files."""
        spec = yaml.safe_load(text)
        for kind in ("members", "rankers"):
            for model in spec.get(kind, {}).values():
                for amount in ("num_gpus", "memory"):
                    model["resources"].pop(amount, None)
                model["dtype"] = "float32"
                if kind == "members":
                    model |= TINY
                    model.pop("max_context", None)
                else:
                    model["model"] = str(make_ranker(self._folder / "ranker", num_labels=1))
        spec["serving"] |= {"host": "127.0.0.1", "port": self._port}
        spec["serving"]["metrics"] = {"port": self._metrics_port}
        spec["serving"]["auth"]["keys"] = str(self._folder / "keys.yaml")
        return yaml.safe_dump(spec, sort_keys=False)

    def _await_health(self, channel: grpc.Channel) -> None:
        """As the kubelet asks routers: by grpc.health.v1, without a key."""
        stub, deadline_s = health_pb2_grpc.HealthStub(channel), time.monotonic() + READY_TIMEOUT_S
        request, serving = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse.SERVING
        while time.monotonic() < deadline_s:
            try:
                if stub.Check(request, timeout=5, wait_for_ready=True).status == serving:
                    return
            except grpc.RpcError:
                self._check_deploys()
            time.sleep(0.5)
        raise TimeoutError(f"not serving after {READY_TIMEOUT_S:g} s")

    def _check_deploys(self) -> None:
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        details = ServeSubmissionClient(self._ray).get_serve_details()
        application = details["applications"].get("cuvee", {})
        if application.get("status") == "DEPLOY_FAILED":
            raise RuntimeError(application["message"])

    def _drawn(self) -> float:
        """Tokens, as the router that has the metrics' port tells them; another may have drawn."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._key}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(it.split()[-1]) for it in lines if it.startswith("cuvee_generation_tokens_")
        )

    def _told_by_ray(self) -> list[str]:
        """Names of ours on the page of a node, once its members have told them."""
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            url = f"http://127.0.0.1:{self._node_metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            names = {line.split()[2] for line in lines if line.startswith("# TYPE ray_cuvee_")}
            if names:
                return sorted(names)
            time.sleep(1)
        return []


if __name__ == "__main__":
    main()
