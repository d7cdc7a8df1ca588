"""Whether replicas fit the nodes of a cluster: pure arithmetic on what is asked and what is there.

A share of a GPU lies on one GPU, and whole GPUs of one replica on one node, all of them free: so
0.6 + 0.6 does not fit one GPU, nor 2 GPUs two nodes with one each. The search tries every placement
that differs; where there are too many of them to try, it finds no fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

GPU = "GPU"

_MAX_TRIES = 20_000
_TOLERANCE = 1e-6  # amounts are sums of floats; Ray counts in steps of 1e-4


@dataclass(frozen=True, slots=True)
class Ask:
    """Replicas that are alike."""

    deployment: str  # Serve's name for what they are replicas of
    part: str  # the same in words
    field: str  # of the blend file
    num: int
    each: Mapping[str, float]  # what one takes of its node, by Ray's names
    labels: Mapping[str, str]  # what its node must be
    allowed: frozenset[str]  # names of the nodes whose labels suit
    max_per_node: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node and what is left of it."""

    name: str
    total: Mapping[str, float]
    left: Mapping[str, float]  # all but GPUs
    gpus: tuple[float, ...]  # what is left of each, least first
    replicas: tuple[int, ...] = ()  # how many of each ask lie here, by place among the asks

    @classmethod
    def empty(cls, name: str, total: Mapping[str, float]) -> Node:
        """A node with nothing on it."""
        num_gpus = total.get(GPU, 0.0)
        share = num_gpus % 1
        gpus = (*((share,) if share > _TOLERANCE else ()), *[1.0] * int(num_gpus + _TOLERANCE))
        return cls(name, total, {key: total[key] for key in total if key != GPU}, gpus)

    def amount_left(self, resource: str) -> float:
        """GPUs are counted together, in whatever pieces they are left."""
        return sum(self.gpus) if resource == GPU else self.left.get(resource, 0.0)


@dataclass(frozen=True, slots=True)
class Shortage:
    """The first replicas for which there is no place, when those before them have theirs."""

    ask: Ask
    num_placed: int
    nodes: tuple[Node, ...]  # with what is left

    @property
    def words(self) -> str:
        """Who asks for what, how many fit, what each node has left."""
        ask = self.ask
        fit = f"{self.num_placed} fit{'s' if self.num_placed == 1 else ''}"
        replicas = f"{ask.num} replica{'' if ask.num == 1 else 's'}"
        limit = f", at most {ask.max_per_node} on a node" if ask.max_per_node else ""
        left = "; ".join(self._left(node) for node in self.nodes) or "there is no node"
        return f"{ask.part} asks for {replicas} of {asked_words(ask)}{limit}: {fit}. Left: {left}"

    def _left(self, node: Node) -> str:
        if node.name not in self.ask.allowed:
            return f"{node.name} has other labels"
        return f"{node.name} " + ", ".join(
            f"{_amount(node.amount_left(key), key)} of {_amount(node.total.get(key, 0.0), key)} "
            f"{key}{_pieces(node) if key == GPU else ''}"
            for key in self.ask.each
        )


def asked_words(ask: Ask) -> str:
    """What one replica asks for."""
    words = [f"{_amount(amount, key)} {key}" for key, amount in ask.each.items()]
    words += [f"label {key}={value}" for key, value in ask.labels.items()]
    return " + ".join(words) or "nothing"


def shortage(asks: Sequence[Ask], nodes: Sequence[Node]) -> Shortage | None:
    """What is missing for all of them at the same time; None where they fit.

    The hardest to place go first: those with few nodes to choose from, then those with many GPUs.
    """
    order = sorted(asks, key=lambda ask: (len(ask.allowed), -ask.each.get(GPU, 0.0)))
    start = tuple(replace(node, replicas=(0,) * len(order)) for node in nodes)
    return _Search(order).run(start)


class _Search:
    """Depth first over all placements; replicas that are alike are placed in order of nodes."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self._asks = asks
        self._places = [i for i, ask in enumerate(asks) for _ in range(ask.num)]
        self._num_tries = 0
        self._best: tuple[int, tuple[Node, ...]] = (-1, ())  # how many were placed, and how

    def run(self, nodes: tuple[Node, ...]) -> Shortage | None:
        if self._fits(0, nodes, 0):
            return None
        if self._num_tries >= _MAX_TRIES and not self._is_beyond_all(nodes):
            return None
        num_placed, left = self._best
        missing = self._places[num_placed]
        num_before = self._places.index(missing)
        return Shortage(self._asks[missing], num_placed - num_before, left)

    def _is_beyond_all(self, nodes: tuple[Node, ...]) -> bool:
        """Whether more is asked of something than all nodes together have."""
        asked: dict[str, float] = {}
        for ask in self._asks:
            for key, amount in ask.each.items():
                asked[key] = asked.get(key, 0.0) + amount * ask.num
        return any(
            amount > sum(node.total.get(key, 0.0) for node in nodes) + _TOLERANCE
            for key, amount in asked.items()
        )

    def _fits(self, num_placed: int, nodes: tuple[Node, ...], first: int) -> bool:
        if num_placed > self._best[0]:
            self._best = num_placed, nodes
        if num_placed == len(self._places):
            return True
        index = self._places[num_placed]
        is_last = self._places[num_placed + 1 : num_placed + 2] != [index]
        seen: set[object] = set()
        for i in range(first, len(nodes)):
            for placed in _with(nodes[i], self._asks[index], index):
                key = (*(ask.allowed >= {placed.name} for ask in self._asks), _state(placed))
                self._num_tries += 1
                if self._num_tries >= _MAX_TRIES:
                    return False
                if key in seen:
                    continue
                seen.add(key)
                after = (*nodes[:i], placed, *nodes[i + 1 :])
                if self._fits(num_placed + 1, after, 0 if is_last else i):
                    return True
        return False


def _with(node: Node, ask: Ask, index: int) -> list[Node]:
    """The node with one replica more, in each way that differs."""
    if node.name not in ask.allowed or node.replicas[index] == ask.max_per_node:
        return []
    others = {key: amount for key, amount in ask.each.items() if key != GPU}
    if any(node.left.get(key, 0.0) + _TOLERANCE < amount for key, amount in others.items()):
        return []
    left = {key: amount - others.get(key, 0.0) for key, amount in node.left.items()}
    counts = list(node.replicas)
    counts[index] += 1
    return [
        replace(node, left=left, gpus=gpus, replicas=tuple(counts))
        for gpus in _gpus_after(node.gpus, ask.each.get(GPU, 0.0))
    ]


def _gpus_after(gpus: tuple[float, ...], asked: float) -> list[tuple[float, ...]]:
    """What is left of each GPU once the ask has its own: fullest GPUs first."""
    if asked == 0:
        return [gpus]
    if asked >= 1:
        rest, free = [g for g in gpus if g < 1], [g for g in gpus if g >= 1]
        num = round(asked)
        return [tuple(sorted([*rest, *[0.0] * num, *free[num:]]))] if len(free) >= num else []
    found = []
    for share in sorted(set(gpus)):
        if share + _TOLERANCE >= asked:
            after = list(gpus)
            after.remove(share)
            found.append(tuple(sorted([*after, max(0.0, round(share - asked, 6))])))
    return found


def _state(node: Node) -> object:
    left = tuple(sorted((key, round(amount, 6)) for key, amount in node.left.items()))
    return left, node.gpus, node.replicas, tuple(sorted(node.total.items()))


def _pieces(node: Node) -> str:
    """How a GPU's rest is cut, where that matters."""
    if all(gpu in (0.0, 1.0) for gpu in node.gpus):
        return ""
    return f" (in pieces of {', '.join(f'{gpu:g}' for gpu in node.gpus if gpu)})"


def _amount(amount: float, resource: str) -> str:
    if resource in ("memory", "object_store_memory"):
        return f"{amount / 2**30:.3g} GiB"
    return f"{round(amount, 4):g}"
