"""Members' engines in processes of their own, asked for whole distributions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from cluster.spec import MemberSpec
from deployments.bench.children import Child, answer_blocking, cpu_seconds
from deployments.bench.engines import BareEngine, Probabilities


@dataclass(frozen=True, slots=True)
class Telling:
    """A question to a peer; without tokens a new sequence begins."""

    start: int = 0
    tokens: tuple[int, ...] = ()


class Peer:
    """One member's engine, asked from another process."""

    def __init__(self, member: Mapping[str, Any]) -> None:
        self._engine = BareEngine(MemberSpec.model_validate(member))
        self._sequence = self._engine.begin()

    def answer(self, question: Telling) -> Probabilities | None:
        """The whole distribution, as naive code sends it."""
        if question.tokens:
            return self._engine.told(self._sequence, question.start, question.tokens)
        self._engine.end(self._sequence)
        self._sequence = self._engine.begin()
        return None


def run_peer(member: Mapping[str, Any], pipe: Connection) -> None:
    """Answer through a pipe until it closes; says first that the model is loaded."""
    peer = Peer(member)
    pipe.send("ready")
    answer_blocking(pipe, peer.answer)


class PipedPeers:
    """Processes and pipes: all are asked, then all answers are awaited."""

    def __init__(self, members: Sequence[MemberSpec]) -> None:
        with ExitStack() as stack:
            plans = [member.model_dump(mode="json", by_alias=True) for member in members]
            self._children: list[Child[Any]] = [
                stack.enter_context(Child(run_peer, plan)) for plan in plans
            ]
            for child in self._children:
                child.address()
            self._stack = stack.pop_all()

    def begin(self) -> None:
        """A new sequence in all of them."""
        for child in self._children:
            child.ask(Telling())

    def tell(self, start: int, tokens: Sequence[int]) -> list[Probabilities]:
        """Of all, at the same time."""
        for child in self._children:
            child.send(Telling(start, tuple(tokens)))
        return [child.receive() for child in self._children]

    def cpu_s(self) -> float:
        """Used so far by all of them."""
        return sum(cpu_seconds(child.pid) for child in self._children)

    def close(self) -> None:
        """End them."""
        self._stack.close()


class ActorPeers:
    """The same on Ray: an actor for each member, its answers fetched from Ray's object store."""

    def __init__(self, members: Sequence[MemberSpec], ray_address: str) -> None:
        import ray

        from deployments.local import connect

        if not ray.is_initialized():
            connect({"address": ray_address})
        make = ray.remote(num_cpus=0)(_ActorPeer)
        plans = [member.model_dump(mode="json", by_alias=True) for member in members]
        self._actors: list[Any] = [make.remote(plan) for plan in plans]
        self._pids: list[int] = ray.get([actor.pid.remote() for actor in self._actors])

    def begin(self) -> None:
        """A new sequence in all of them."""
        self._ask(Telling())

    def tell(self, start: int, tokens: Sequence[int]) -> list[Probabilities]:
        """Of all, at the same time."""
        return self._ask(Telling(start, tuple(tokens)))

    def cpu_s(self) -> float:
        """Used so far by all of them."""
        return sum(map(cpu_seconds, self._pids))

    def close(self) -> None:
        """End them, and leave Ray."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        ray.shutdown()

    def _ask(self, question: Telling) -> list[Any]:
        import ray

        found: list[Any] = ray.get([actor.answer.remote(question) for actor in self._actors])
        return found


class _ActorPeer(Peer):
    """A peer that tells its process id."""

    def pid(self) -> int:
        return os.getpid()
