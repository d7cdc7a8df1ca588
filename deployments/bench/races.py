"""What is asked of the rivals' process. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any

from deployments.bench.workload import Job, Subject


class Rival(Enum):
    """Who is raced against."""

    GENERATE = "transformers generate"
    LOOP = "transformers loop"
    BATCH = "transformers loop, static batch"
    MIXTURE = "transformers mixture"
    AVERAGE = "transformers ensemble, sequential"
    ENGINE = "our engine alone"
    ENGINE_BATCH = "our engine alone, batch"
    OWN_AVERAGE = "our engine ensemble, sequential"
    OWN_PARALLEL = "our engine ensemble, parallel"


@dataclass(frozen=True, slots=True)
class ContestPlan:
    """What the rivals may use."""

    members: Mapping[str, Mapping[str, Any]]  # MemberSpec by name, as mappings
    num_threads: int  # of torch, here and in each process that is started
    ray_address: str = ""  # empty: processes and pipes instead of actors


@dataclass(frozen=True, slots=True)
class Race:
    """One rival's part of one round. Not of batches: one reply after another."""

    rival: Rival
    subject: Subject
    jobs: Sequence[Job]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast this machine reads memory, and what a member's pass of one token has to read."""

    bytes_per_s: float  # best of several, by as many threads as a replica has
    weights: Mapping[str, int] = field(default_factory=dict)  # bytes, by member


def run_contest(plan: ContestPlan, pipe: Connection) -> None:
    """Race until the pipe closes; says first that it is there."""
    from deployments.bench.contest import race_until_closed

    race_until_closed(plan, pipe)
