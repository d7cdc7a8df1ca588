"""Blends whose members write whole replies, from which one is chosen or written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from cluster.spec.blend import BlendBase
from cluster.spec.references import VOTE
from cluster.spec.templates import check_template
from cluster.spec.values import Name, Named, Span, Weights, refuse

# The proposals before the prompt: a model that continues text then continues the prompt itself.
FUSE_TEMPLATE = """\
Here are {{ replies | length }} drafts of a reply. They may be wrong or one-sided: judge them, and \
write one reply that is better than each of them.
{% for reply in replies %}

Draft {{ loop.index }}:
{{ reply }}
{% endfor %}

{{ prompt }}"""


class ProposingSpec(BlendBase):
    """Members propose whole replies, at the same time; stragglers are not waited for for ever."""

    replies: int = Field(default=1, ge=1, le=16, description="replies of each member, from 1 to 16")
    time_limit_s: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds after which a quorum is enough, at least 0 (0: wait for all)",
    )
    quorum: int = Field(
        default=1, ge=1, description="replies that are enough then, at least 1 and at most all"
    )

    @property
    def needs_one_vocabulary(self) -> bool:
        return False

    @property
    def proposers(self) -> tuple[str, ...]:
        """The members that propose."""
        return _proposers(self.members)

    @field_validator("quorum")
    @classmethod
    def _within_replies(cls, quorum: int, info: ValidationInfo) -> int:
        if quorum > (most := _num_proposals(info)):
            raise refuse(f"expected at most {most}, as many as are written")
        return quorum

    def span_for(self, *, one_vocabulary: bool) -> Span:
        return "response"


def _proposers(members: Mapping[str, float | str]) -> tuple[str, ...]:
    idle = (0, "fuser")
    return tuple(name for name, part in members.items() if part not in idle)


def _num_proposals(info: ValidationInfo) -> int:
    return len(_proposers(info.data.get("members", {}))) * int(info.data.get("replies", 1))


class ChooseSpec(ProposingSpec):
    """All members reply; the best reply is the answer."""

    parameter_names: ClassVar[tuple[str, ...]] = ("replies", "time_limit_s", "quorum")

    method: Literal["choose"] = Field(description="choose")
    members: Weights = Field(
        description="weights of at least 0 by member, such as {austen: 0.5, kjv: 0.5}"
    )
    rank: Name = Field(description="likelihood, vote, or the name of a ranker")
    extract: str | None = Field(
        default=None,
        validate_default=True,
        description="for rank vote, a regular expression whose last match in a reply is its "
        "answer, or that match's group",
    )

    @property
    def rule_name(self) -> str:
        return self.rank

    @field_validator("extract")
    @classmethod
    def _reads_votes(cls, extract: str | None, info: ValidationInfo) -> str | None:
        is_vote = info.data.get("rank") == VOTE
        if extract is None:
            if is_vote:
                raise refuse("expected a regular expression that finds a reply's answer")
            return None
        if not is_vote:
            raise refuse("expected none: only rank vote extracts answers")
        try:
            pattern = re.compile(extract)
        except re.error as error:
            raise refuse(f"expected a regular expression: {error}") from None
        if pattern.groups > 1:
            raise refuse(f"expected at most one group; this has {pattern.groups}")
        return extract


def _check_fuser(roles: Mapping[str, str]) -> Mapping[str, str]:
    if sum(role in ("fuser", "both") for role in roles.values()) != 1:
        raise refuse("expected one fuser, by role fuser or both")
    if not _proposers(roles):
        raise refuse("expected at least one proposer, by role proposer or both")
    return roles


class FuseSpec(ProposingSpec):
    """Members reply, and a fuser writes the answer from their replies (2406.04692)."""

    parameter_names: ClassVar[tuple[str, ...]] = (
        "replies",
        "layers",
        "top",
        "time_limit_s",
        "quorum",
    )

    method: Literal["fuse"] = Field(description="fuse")
    members: Annotated[
        Named[Literal["proposer", "fuser", "both"]], AfterValidator(_check_fuser)
    ] = Field(description="a role by member: proposer, fuser or both; one of them fuses")
    layers: int = Field(
        default=1, ge=1, le=8, description="rounds of proposals, each from the last, from 1 to 8"
    )
    rank: Name | None = Field(
        default=None, description="likelihood, or the name of a ranker, where top is given"
    )
    top: int = Field(
        default=0,
        ge=0,
        description="how many of the best proposals the fuser gets, at least 0 (0: all)",
    )
    template: str = Field(
        default=FUSE_TEMPLATE, description="a Jinja template with prompt and replies"
    )

    @property
    def rule_name(self) -> str:
        return self.rank or ""

    @field_validator("rank")
    @classmethod
    def _no_vote(cls, rank: str | None) -> str | None:
        if rank == VOTE:
            raise refuse("expected likelihood or the name of a ranker: a vote is for method choose")
        return rank

    @field_validator("top")
    @classmethod
    def _can_be_ranked(cls, top: int, info: ValidationInfo) -> int:
        if top and info.data.get("rank") is None:
            raise refuse("expected rank with it: likelihood, or the name of a ranker")
        if top > (most := _num_proposals(info)):
            raise refuse(f"expected at most {most}, as many as are written")
        return top

    @field_validator("template")
    @classmethod
    def _is_template(cls, template: str) -> str:
        return check_template(template, needs=("prompt", "replies"))

    @property
    def fuser(self) -> str:
        """The member that writes the answer."""
        return next(name for name, role in self.members.items() if role in ("fuser", "both"))
