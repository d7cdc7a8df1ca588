"""Who is measured, from what a server lists; and what they are asked."""

from __future__ import annotations

from itertools import islice

import pytest

from cluster.blending.mixture import Mixture
from cuvee.v1 import blend_pb2, generation_pb2
from deployments.bench.workload import Kind, fresh_jobs, subjects_of


def blend(name: str, method: str, span: generation_pb2.Span, **weights: float) -> blend_pb2.Blend:
    members = [blend_pb2.BlendMember(name=n, weight=w) for n, w in weights.items()]
    return blend_pb2.Blend(name=name, method=method, span=span, members=members)


BY_TOKEN = generation_pb2.Span(num_tokens=1)
BLENDS = [
    blend("mean", "ensemble", BY_TOKEN, a=0.5, c=0.5),
    blend("tokens", "mixture", BY_TOKEN, a=0.75, b=0.25),
    blend("eights", "mixture", generation_pb2.Span(num_tokens=8), a=0.5, b=0.5),
    blend("replies", "mixture", generation_pb2.Span(unit=generation_pb2.SPAN_UNIT_RESPONSE), a=1),
]


def test_members_come_first_pinned_in_a_mixture_where_there_is_one() -> None:
    found = subjects_of(BLENDS)
    assert [(s.name, s.ask.blend, s.ask.member, s.kind) for s in found] == [
        ("a", "tokens", "a", Kind.MEMBER),
        ("b", "tokens", "b", Kind.MEMBER),
        ("c", "mean", "c", Kind.MEMBER),
        ("mean", "mean", "", Kind.OTHER),
        ("tokens", "tokens", "", Kind.BY_TOKEN),
        ("eights", "eights", "", Kind.OTHER),
        ("replies", "replies", "", Kind.BY_REPLY),
    ]


def test_only_blends_that_are_wanted_and_served() -> None:
    assert [subject.name for subject in subjects_of(BLENDS, ["tokens"])] == ["a", "b", "tokens"]
    with pytest.raises(ValueError, match="got nothing; expected blends of: mean, tokens"):
        subjects_of(BLENDS, ["tokens", "nothing"])


def test_rivals_have_the_schedule_of_the_blend() -> None:
    (subject,) = [s for s in subjects_of(BLENDS) if s.name == "tokens"]
    mixture = Mixture((0.75, 0.25), "token", 11)
    said = [subject.speaker(11, position) for position in range(200)]
    assert said == ["ab"[mixture.speaker(position)] for position in range(200)]


def test_prompts_have_the_length_asked_for_and_unlike_beginnings() -> None:
    jobs = list(islice(fresh_jobs(20), 400))
    assert {len(job.prompt.split()) for job in jobs} == {20}
    assert len({tuple(job.prompt.split()[:4]) for job in jobs}) == len(jobs) == 400
    assert len({job.seed for job in jobs}) == 400
