"""The whole path for real: Ray, Serve, replicas of an embedded model, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cuvee.v1 import blend_pb2, blend_pb2_grpc, generation_pb2_grpc
from cuvee.v1 import generation_pb2 as pb
from deployments.processes import descendants

pytestmark = pytest.mark.cluster

SPEC = """
version: 1
members:
  austen: {model: embedded:tiny-austen, kv_memory: 16MiB, resources: {num_cpus: 0.1}}
  kjv: {model: embedded:tiny-kjv, kv_memory: 16MiB, resources: {num_cpus: 0.1}}
blends:
  both: {method: mixture, members: {austen: 1, kjv: 1}}
"""
BIERCE = "  bierce: {model: embedded:tiny-bierce, kv_memory: 16MiB, resources: {num_cpus: 0.1}}"
NEW = "{method: mixture, members: {austen: 1, bierce: 1}}"
CUVEE = (sys.executable, "-c", "from deployments.cli import main; main()")


@contextmanager
def up(file: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`cuvee up`, ready; killed at the end if the test has not stopped it."""
    command = [*CUVEE, "up", str(file), "--json", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines: list[str] = []
            while not lines or lines[-1].rstrip() != "}":
                lines.append(process.stdout.readline())
                assert lines[-1], f"cuvee up ended with {process.wait()}"
            yield process, json.loads("".join(lines))
        finally:
            process.kill()


def generate(address: str, *options: str) -> dict[str, Any]:
    command = [*CUVEE, "generate", "It is", "--server", address, "--json", "--seed", "7", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def apply(file: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [*CUVEE, "apply", str(file), "--json", *options]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env=environment
    )
    return done.returncode, json.loads(done.stdout)


def replica_pids() -> dict[str, int]:
    """By deployment: the processes of replicas; their titles are Serve's."""
    found = {}
    for process in descendants():
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        if title.startswith("ray::ServeReplica:cuvee:"):
            found[title.removeprefix("ray::ServeReplica:cuvee:")] = process.pid
    return found


@pytest.mark.timeout(600)
def test_weights_change_while_replies_and_replicas_go_on(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(SPEC)
    others = descendants()
    stopping = {"max_tokens": 900, "ignore_eos": True}
    wanted = pb.StreamGenerateRequest(prompt="It is", sampling={"seed": 7}, stopping=stopping)
    with up(file) as (process, ready), grpc.insecure_channel(ready["address"]) as channel:
        assert ready["ok"]
        assert ready["blends"] == ["both"]
        first = generate(ready["address"], "--max-tokens", "24")
        assert {token["member"] for token in first["tokens"]} == {"austen", "kjv"}
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        blends = blend_pb2_grpc.BlendServiceStub(channel)
        undisturbed = "".join(piece.text_delta for piece in stub.StreamGenerate(wanted))
        before, pids = blends.GetBlend(blend_pb2.GetBlendRequest()).blend, replica_pids()
        assert set(pids) == {"router", "member-austen", "member-kjv"}
        ray_address = ("--ray-address", ready["ray_address"])
        assert ready["ray_address"].startswith("127.0.0.1:")  # all of Ray is on loopback
        assert apply(file, *ray_address)[1]["blends"] == [
            {"blend": "both", "old": before.revision, "new": before.revision}
        ]
        stream = stub.StreamGenerate(wanted)
        pieces = [next(stream).text_delta]
        file.write_text(SPEC.replace("kjv: 1}", "kjv: 3}"))
        code, answer = apply(file, *ray_address)
        after = blends.GetBlend(blend_pb2.GetBlendRequest()).blend
        pieces += [piece.text_delta for piece in stream]
        assert code == 0
        assert answer["blends"] == [
            {"blend": "both", "old": before.revision, "new": after.revision}
        ]
        assert after.revision != before.revision
        assert [member.weight for member in after.members] == [0.25, 0.75]
        assert "".join(pieces) == undisturbed
        assert replica_pids() == pids

        file.write_text(SPEC.replace("\nblends:", f"\n{BIERCE}\nblends:\n  new: {NEW}"))
        _, answer = apply(file, *ray_address)
        assert [change["blend"] for change in answer["blends"]] == ["new", "both"]
        assert answer["blends"][0]["old"] == ""
        new = generate(ready["address"], "--blend", "new", "--max-tokens", "24")
        assert {token["member"] for token in new["tokens"]} == {"austen", "bierce"}
        assert pids.items() <= replica_pids().items()

        file.write_text(SPEC.replace("\nblends:", "\nserving: {port: 1}\nblends:"))
        code, answer = apply(file, *ray_address)
        assert (code, answer["reason"], answer["field"]) == (1, "NEEDS_RESTART", "serving.port")
        started = descendants() - others
        for each in started:  # as a terminal's or a container's end signals all of them
            os.kill(each.pid, signal.SIGTERM)
        assert process.wait(timeout=40) == 0
    assert not any(child.is_alive for child in started)
    code, answer = apply(file, *ray_address)
    assert (code, answer["reason"]) == (1, "RAY_UNAVAILABLE")


def test_a_member_that_cannot_load_ends_up_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    file = tmp_path / "blend.yaml"
    file.write_text(SPEC.replace("embedded:tiny-kjv, kv_memory: 16MiB", str(folder)))
    before = descendants()
    command = [*CUVEE, "up", str(file), "--json", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["reason"]) == (1, "MEMBER_FAILED")
    assert "'kjv' cannot start" in answer["error"]
    assert "no-such-model" in answer["error"]
    assert descendants() <= before
