"""What is asked in a run: two members, prompts of one length, so many tokens, so many streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cluster.models
from cluster.spec import ClusterSpec, parse_spec

_HELD_OUT = Path(cluster.models.__file__).parent / "embedded" / "held_out"
_SPEC = """
version: 1
members:
  {names[0]}: {member[0]}
  {names[1]}: {member[1]}
blends:
  tokens: {{method: mixture, span: token, members: {{{names[0]}: 0.5, {names[1]}: 0.5}}}}
  replies: {{method: mixture, span: response, members: {{{names[0]}: 0.5, {names[1]}: 0.5}}}}
serving: {{port: 0, default_blend: tokens}}
"""
_MEMBER = (
    "{{model: '{model}', dtype: {dtype}, kv_memory: {kv_memory}, max_context: {max_context}, "
    "resources: {{num_cpus: {num_threads}}}}}"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What Cuvée is asked for."""

    name: str
    blend: str
    member: str = ""  # pinned; without one, the blend draws


@dataclass(frozen=True, slots=True)
class Workload:
    """One run's sizes."""

    name: str
    names: tuple[str, str]  # of the members
    models: tuple[str, str]
    kv_memory: str
    max_context: int
    num_rounds: int
    num_new_tokens: int
    num_requests_alone: int  # one after another, per round and case
    num_streams: int = 16  # where there are many: as many requests, all at the same moment
    num_prompt_words: int = 40
    dtype: str = "float32"
    num_threads: int = 1  # of torch, in each replica and in the rivals

    @property
    def one_member(self) -> Ask:
        """The first member alone."""
        return Ask("one member", "tokens", self.names[0])

    @property
    def spec(self) -> ClusterSpec:
        """What is served."""
        return parse_spec(self.spec_text)

    @property
    def spec_text(self) -> str:
        """The blend file."""
        members = [
            _MEMBER.format(
                model=model,
                dtype=self.dtype,
                kv_memory=self.kv_memory,
                max_context=self.max_context,
                num_threads=self.num_threads,
            )
            for model in self.models
        ]
        return _SPEC.format(names=self.names, member=members)


BY_TOKEN = Ask("mixture/token", "tokens")
BY_RESPONSE = Ask("mixture/response", "replies")

TINY = Workload(
    name="tiny",
    names=("austen", "kjv"),
    models=("embedded:tiny-austen", "embedded:tiny-kjv"),
    kv_memory="256MiB",
    max_context=512,
    num_rounds=5,
    num_new_tokens=128,
    num_requests_alone=4,
)
SMOLLM2 = Workload(
    name="smollm2",
    names=("first", "second"),
    models=("fetched:smollm2", "fetched:smollm2"),
    kv_memory="768MiB",
    max_context=512,
    num_rounds=3,
    num_new_tokens=24,
    num_requests_alone=2,
)
WORKLOADS = {workload.name: workload for workload in (TINY, SMOLLM2)}


@dataclass(frozen=True, slots=True)
class Job:
    """One reply to ask for."""

    prompt: str
    seed: int  # of the draws; also fixes who speaks when


def fresh_jobs(num_prompt_words: int) -> Iterator[Job]:
    """Prompts of one length, no two alike from the first word on.

    A prompt given twice would come from the prefix cache the second time, which is not what is
    measured here.
    """
    words = " ".join(path.read_text() for path in sorted(_HELD_OUT.glob("*.txt"))).split()
    seen: set[tuple[str, ...]] = set()
    for begin in range(0, len(words) - num_prompt_words, 3):
        head = tuple(words[begin : begin + 4])
        if head not in seen:
            seen.add(head)
            yield Job(" ".join(words[begin : begin + num_prompt_words]), seed=begin)
