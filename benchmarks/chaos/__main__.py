"""Chaos: kills, freezes and drains at all levels under streams of mixed methods.

    python -m benchmarks.chaos [--seconds 180] [--seed 1] [--streams 50]
                               [--json FILE] [--markdown PAGE]

Every finished stream must equal its undisturbed twin, every other one must end with a status that
has a name, and be resumed to its twin's text afterwards; and nothing may be left at the end: no
lease, no sequence, no cache page, no process. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import yaml

from benchmarks.chaos.harm import Harmer, deeds
from benchmarks.chaos.load import Streams, all_asks, twins
from benchmarks.chaos.verdict import Verdict, as_markdown
from cluster.spec import ClusterSpec, parse_spec
from cuvee.v1 import admin_pb2, admin_pb2_grpc
from deployments.bench.machine import machine_line
from deployments.bench.markdown import put_fragment
from deployments.local import LocalCluster, application_details, set_environment
from deployments.processes import descendants

TINY = "dtype: float32, kv_memory: 96MiB, max_context: 512, resources: {num_cpus: 0.3}"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, replicas: 2, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, replicas: 2, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, replicas: 2, {TINY}}}
blends:
  tokens: {{method: mixture, span: token, members: {{austen: 0.5, kjv: 0.5}}}}
  words: {{method: mixture, span: word, members: {{austen: 0.5, bytes: 0.5}}}}
  replies: {{method: mixture, span: response, members: {{austen: 0.5, kjv: 0.5}}}}
  mean: {{method: ensemble, candidates: 32, members: {{austen: 0.5, kjv: 0.5}}}}
  contrast: {{method: contrast, beta: 0.4, members: {{austen: expert, kjv: amateur}}}}
  sure: {{method: route, gate: {{by: confidence, first: austen}}, threshold: 0.3,
         members: {{austen: 1, kjv: 1}}}}
  likely: {{method: choose, rank: likelihood, members: {{austen: 1, bytes: 1}}}}
  team: {{method: fuse, members: {{austen: proposer, bytes: proposer, kjv: fuser}}}}
serving: {{routers: 2}}
limits: {{lease_timeout_s: 90, max_deadline_s: 600}}
"""
_NODE: dict[str, Any] = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
_NUM_NODES = 2  # beside the head, which holds Serve's controller and no replica
_CPUS_PER_NODE = 4
_CALM_S = 120.0  # to heal at the end
_NODE_DOWN_S = 3.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, judge."""
    options = _parser().parse_args(arguments)
    verdict = run(options.seconds, options.seed, options.streams)
    told = json.dumps(asdict(verdict) | {"is_good": verdict.is_good}, indent=1, ensure_ascii=False)
    print(told)
    if options.json:
        options.json.write_text(told)
    if options.markdown:
        put_fragment(options.markdown, "chaos", as_markdown(verdict))
    sys.exit(0 if verdict.is_good else 1)


def run(seconds: float, seed: int, num_streams: int) -> Verdict:
    """One run on a cluster of its own."""
    verdict = Verdict(machine_line(), seed, seconds, num_streams)
    others = descendants()
    set_environment()
    from ray.cluster_utils import Cluster

    spec = _spec()
    ray = Cluster()
    try:
        ray.add_node(num_cpus=0, **_NODE)
        nodes = [ray.add_node(num_cpus=_CPUS_PER_NODE, **_NODE) for _ in range(_NUM_NODES)]
        with LocalCluster(spec, ray_address=ray.address) as served:
            _disturb(verdict, served, ray, nodes)
    finally:
        ray.shutdown()  # type: ignore[no-untyped-call]
    _await(lambda: not descendants() - others, 15)
    verdict.processes = sorted(process.name for process in descendants() - others)
    return verdict


def _disturb(verdict: Verdict, served: LocalCluster, ray: Any, nodes: list[Any]) -> None:
    """Load and harm at the same time; then calm, and a look at what is left."""
    expected = twins(served.address, all_asks(list(served.spec.blends)))
    streams = Streams(served.address, expected, verdict.seed, verdict.streams)
    harmer = Harmer(
        replace_node=lambda choice: _replace_node(ray, nodes, choice),
        drain=_drainer(served.spec, ray.address),
    )
    loading = threading.Thread(target=streams.run)
    loading.start()
    try:
        harmer.run(deeds(verdict.seed, verdict.seconds))
    finally:
        streams.stop()
        loading.join()
    _note_streams(verdict, streams, harmer)
    _await(lambda: _is_whole(), _CALM_S)
    verdict.not_resumed = streams.resume_broken()
    _await(lambda: _is_empty(verdict, served.address), 60)


def _note_streams(verdict: Verdict, streams: Streams, harmer: Harmer) -> None:
    tally = streams.tally
    verdict.harm = {harm.value: num for harm, num in harmer.done.items()}
    verdict.missed = {harm.value: num for harm, num in harmer.missed.items()}
    verdict.harm_errors = harmer.errors
    verdict.finished = dict(tally.finished)
    verdict.resumed, verdict.taken_over = tally.resumed, tally.taken_over
    verdict.broken = dict(Counter(broken.reason for broken in tally.broken))
    verdict.different, verdict.unnamed = tally.different, tally.unnamed


def _replace_node(ray: Any, nodes: list[Any], choice: float) -> bool:
    """Kill all of one node's processes at once; a while later another node joins."""
    node = nodes.pop(int(choice * len(nodes)))
    ray.remove_node(node, allow_graceful=False)
    time.sleep(_NODE_DOWN_S)
    while len(nodes) < _NUM_NODES:  # on a busy machine Ray gives up nodes that start slowly
        with contextlib.suppress(Exception):
            nodes.append(ray.add_node(num_cpus=_CPUS_PER_NODE, **_NODE))
    return True


def _drainer(spec: ClusterSpec, ray_address: str) -> Callable[[], bool]:
    """Applies the file with three replicas of a member instead of two, and back."""
    counts = {"now": 2}

    def drain() -> bool:
        counts["now"] = 5 - counts["now"]
        mapping = spec.to_mapping()
        mapping["members"]["austen"]["replicas"] = counts["now"]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(mapping, file, sort_keys=False)
            file.flush()
            words = "from deployments.cli import main; main()"
            command = [sys.executable, "-c", words, "apply", file.name]
            done = subprocess.run(
                [*command, "--ray-address", ray_address],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return True

    return drain


def _is_whole() -> bool:
    deployments = application_details()["deployments"].values()
    return all(deployment["status"].value == "HEALTHY" for deployment in deployments)


def _is_empty(verdict: Verdict, address: str) -> bool:
    """Ask for what is held anywhere; a fresh channel each time, to ask either router."""
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        status = stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=20)
    replicas = [replica for member in status.members for replica in member.replicas]
    verdict.leases = sum(replica.leases for replica in replicas)
    verdict.sequences = sum(replica.sequences for replica in replicas)
    verdict.kv_fill = sum(replica.kv_fill for replica in replicas)
    return bool(replicas) and verdict.leases == verdict.sequences == 0 == verdict.kv_fill


def _spec() -> ClusterSpec:
    """On a port that stays, since routers come back on it."""
    spec = parse_spec(SPEC)
    with socket.socket() as probe:
        probe.bind((spec.serving.host, 0))
        serving = spec.serving.model_copy(update={"port": probe.getsockname()[1]})
    return spec.model_copy(update={"serving": serving})


def _await(is_so: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so() and time.monotonic() < end_s:
        time.sleep(0.5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=180.0, help="of harm; 3600: an hour")
    parser.add_argument("--seed", type=int, default=1, help="of the harm and of what is asked")
    parser.add_argument("--streams", type=int, default=50, help="at a time")
    parser.add_argument("--json", type=Path, help="write the verdict here, too")
    parser.add_argument("--markdown", type=Path, help="put the figures into this page")
    return parser


if __name__ == "__main__":
    main()
