"""What is asked in a run: of whom, with which prompts, so many tokens, by so many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import cluster.models
from cluster.blending.mixture import Mixture
from cuvee.v1 import blend_pb2, generation_pb2

_HELD_OUT = Path(cluster.models.__file__).parent / "embedded" / "held_out"


@dataclass(frozen=True, slots=True)
class Ask:
    """What Cuvée is asked for."""

    name: str
    blend: str
    member: str = ""  # pinned; without one, the blend draws


class Kind(Enum):
    """What a subject is, as far as figures are compared."""

    MEMBER = "member alone"
    BY_TOKEN = "mixture/token"
    BY_REPLY = "mixture/response"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured: one member, or a blend of several."""

    ask: Ask
    kind: Kind
    weights: Mapping[str, float]  # by member, summing to 1; of a mixture or a member

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.ask.name

    def speaker(self, seed: int, position: int) -> str:
        """Who speaks at a position of a mixture by token: the same for a rival as in Cuvée."""
        mixture = Mixture(tuple(self.weights.values()), "token", seed)
        return list(self.weights)[mixture.speaker(position)]


def subjects_of(blends: Sequence[blend_pb2.Blend], wanted: Sequence[str] = ()) -> list[Subject]:
    """From what a server lists (cuvee.v1.Blend): first each member alone, then the blends.

    `wanted` are names of blends; none means all. Raises ValueError for one that is not there.
    """
    known = {blend.name: blend for blend in blends}
    if missing := [name for name in wanted if name not in known]:
        raise ValueError(f"got {', '.join(missing)}; expected blends of: {', '.join(known)}")
    chosen = [known[name] for name in wanted] or list(blends)
    alone: dict[str, Subject] = {}
    # A mixture's pinned member draws exactly as it would alone.
    for blend in sorted(chosen, key=lambda blend: blend.method != "mixture"):
        for member in blend.members:
            ask = Ask(member.name, blend.name, member.name)
            alone.setdefault(member.name, Subject(ask, Kind.MEMBER, {member.name: 1.0}))
    return [*alone.values(), *(_blended(blend) for blend in chosen)]


def _blended(blend: blend_pb2.Blend) -> Subject:
    total = sum(member.weight for member in blend.members) or 1.0
    weights = {member.name: member.weight / total for member in blend.members}
    kind = Kind.OTHER
    if blend.method == "mixture" and blend.span.num_tokens == 1:
        kind = Kind.BY_TOKEN
    elif blend.method == "mixture" and blend.span.unit == generation_pb2.SPAN_UNIT_RESPONSE:
        kind = Kind.BY_REPLY
    return Subject(Ask(blend.name, blend.name), kind, weights)


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
