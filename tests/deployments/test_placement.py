"""Replicas over several Ray nodes: with GPUs of their own, spread, packed, or refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.deployments.several_nodes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_what_can_never_be_placed_is_refused_within_seconds(found: dict[str, Any]) -> None:
    refused = found["refused"]
    assert len(refused) == 5
    for seconds, words, field in refused.values():
        assert seconds < 30  # and not after the minutes for which others wait
        assert words.startswith("member 'a' asks for ")
        assert field == "members.a.resources"
    assert "5 fit." in refused["one GPU cannot be two shares of 0.6"][1]
    assert "other labels" in refused["no node is there"][1]


def test_every_replica_has_gpus_of_its_own(found: dict[str, Any]) -> None:
    taken = [
        (node, gpu)
        for placed in found["replicas"].values()
        for node, gpus in placed
        for gpu in gpus
    ]
    assert len(taken) == len(set(taken)) == 4
    assert [len(gpus) for _, gpus in found["replicas"]["member-spread"]] == [1, 1]
    assert [len(gpus) for _, gpus in found["replicas"]["member-split"]] == [2]


def test_where_serve_packs_max_per_node_spreads_all_the_same(found: dict[str, Any]) -> None:
    nodes = {name: {node for node, _ in placed} for name, placed in found["replicas"].items()}
    assert len(nodes["member-spread"]) == 2
    assert len(nodes["member-packed"]) == 1
    assert len(found["replicas"]["member-packed"]) == 2


def test_replicas_that_lost_their_node_and_have_no_other_are_told(found: dict[str, Any]) -> None:
    told = {words.split(" asks for ")[0] for words in found["notes"]}
    assert told >= {"no room for now: member 'split'", "no room for now: member 'spread'"}
