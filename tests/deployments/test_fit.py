"""What fits where: plain arithmetic, and the words for what does not."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.spec import parse_spec
from deployments.fit import Ask, Node, Shortage, shortage
from deployments.placement import asks_of, serve_options


def node(name: str, **total: float) -> Node:
    return Node.empty(name, total)


def ask(num: int, *, on: str = "ab", most: int | None = None, **each: float) -> Ask:
    name = "-".join(each)
    return Ask(f"member-{name}", f"member {name!r}", "f", num, each, {}, frozenset(on), most)


def missing(asks: list[Ask], *nodes: Node) -> Shortage:
    found = shortage(asks, nodes)
    assert found is not None
    return found


FITTING: dict[str, tuple[list[Ask], list[Node]]] = {
    "halves share a GPU": ([ask(4, GPU=0.5)], [node("a", GPU=2)]),
    "shares that add up only if chosen well": (
        [ask(1, GPU=0.5), ask(1, GPU=0.25), ask(1, GPU=0.75), ask(1, CPU=1, GPU=0.5)],
        [node("a", GPU=2, CPU=1)],
    ),
    "the picky go first": (
        [ask(2, CPU=1), ask(1, on="a", CPU=1)],
        [node("a", CPU=1), node("b", CPU=2)],
    ),
    "room for those that take more than one thing": (
        [ask(2, CPU=2), ask(2, GPU=1, CPU=1)],
        [node("a", CPU=2, GPU=2), node("b", CPU=4)],
    ),
    "one on each node": ([ask(2, most=1, CPU=1)], [node("a", CPU=4), node("b", CPU=4)]),
    "nothing at all": ([ask(9)], [node("a")]),
}


@pytest.mark.parametrize("case", FITTING)
def test_what_has_a_place_is_found_one(case: str) -> None:
    asks, nodes = FITTING[case]
    assert shortage(asks, nodes) is None


def test_shares_do_not_span_gpus() -> None:
    found = missing([ask(3, GPU=0.6)], node("a", GPU=2))
    assert found.num_placed == 2
    assert found.words == (
        "member 'GPU' asks for 3 replicas of 0.6 GPU: 2 fit. "
        "Left: a 0.8 of 2 GPU (in pieces of 0.4, 0.4)"
    )


def test_whole_gpus_of_a_replica_are_of_one_node() -> None:
    found = missing([ask(1, GPU=2)], node("a", GPU=1), node("b", GPU=1))
    assert found.words == (
        "member 'GPU' asks for 1 replica of 2 GPU: 0 fit. Left: a 1 of 1 GPU; b 1 of 1 GPU"
    )
    assert shortage([ask(1, GPU=2)], [node("a", GPU=1), node("b", GPU=2)]) is None


def test_a_share_taken_leaves_no_whole_gpu() -> None:
    asks = [ask(1, CPU=1, GPU=0.1), ask(2, GPU=1)]
    assert missing(asks, node("a", CPU=1, GPU=2)).num_placed < 2


def test_a_limit_per_node_and_labels_are_named() -> None:
    asks = [ask(3, on="ab", most=1, CPU=1)]
    found = missing(asks, node("a", CPU=4), node("b", CPU=4), node("c", CPU=4))
    assert ", at most 1 on a node: 2 fit." in found.words
    assert found.words.endswith("c has other labels")


def test_far_too_many_are_refused_without_trying_everything() -> None:
    nodes = [node(name, CPU=10 + i, GPU=4) for i, name in enumerate("abcdefgh")]
    asks = [ask(40 + i, on="abcdefgh", CPU=1 + i / 10, GPU=0.3 + i / 20) for i in range(3)]
    assert shortage(asks, nodes) is not None


def test_as_many_as_fit_are_placed_with_many_nodes_alike() -> None:
    nodes = [node(f"n{i}", CPU=8, GPU=8) for i in range(30)]
    everywhere = frozenset(node.name for node in nodes)
    gpus = Ask("member-a", "member 'a'", "f", 60, {"GPU": 4.0, "CPU": 1.0}, {}, everywhere)
    assert shortage([gpus], nodes) is None
    more = Ask("member-b", "member 'b'", "f", 1, {"GPU": 1.0}, {}, everywhere)
    assert missing([gpus, more], *nodes).ask is more


RESOURCES = """
version: 1
members:
  a:
    model: org/a
    replicas: 2
    resources: {num_gpus: 2, memory: 1GiB, accelerator_type: L4, labels: {zone: east},
                custom: {disk: 1}, max_per_node: 1}
  b: {model: org/b, resources: {num_gpus: 0.5},
      autoscaling: {min_replicas: 1, max_replicas: 3}}
blends: {two: {method: mixture, members: {a: 1, b: 1}}}
"""


def test_resources_become_options_of_serve() -> None:
    spec = parse_spec(RESOURCES)
    assert serve_options(spec.members["a"].resources) == {
        "ray_actor_options": {
            "num_cpus": 1.0,
            "num_gpus": 2.0,
            "memory": 2**30,
            "accelerator_type": "L4",
            "resources": {"disk": 1.0},
            "label_selector": {"zone": "east"},
        },
        "max_replicas_per_node": 1,
    }
    assert serve_options(spec.members["b"].resources) == {
        "ray_actor_options": {"num_cpus": 1.0, "num_gpus": 0.5}
    }


def test_asks_count_what_runs_at_least_and_at_most() -> None:
    def found(**more: Any) -> dict[str, int]:
        asks = asks_of(parse_spec(RESOURCES), lambda labels: frozenset("n"), **more)
        return {ask.deployment: ask.num for ask in asks}

    assert found() == {"member-a": 2, "member-b": 1, "router": 1}
    assert found(at_most=True) == {"member-a": 2, "member-b": 3, "router": 1}
