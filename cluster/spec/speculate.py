"""Whether a cheap member drafts ahead for the others."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, ValidationInfo

from cluster.spec.frozen import Frozen
from cluster.spec.values import refuse

MAX_DRAFT_TOKENS = 64


class SpeculateSpec(Frozen):
    """Who drafts, and how far at most. The text is the same as without; only its time changes."""

    draft: str = Field(description="the member that drafts, the fastest one")
    max_tokens: int = Field(
        default=8,
        ge=1,
        le=MAX_DRAFT_TOKENS,
        description=f"a whole number of tokens from 1 to {MAX_DRAFT_TOKENS}, drafted at most",
    )
    always: bool = Field(
        default=False,
        description="true to draft max_tokens each time, or false for as many as were found to pay",
    )


def check_drafter(speculate: SpeculateSpec, info: ValidationInfo) -> None:
    """Refuse a drafter that is no member, or that has nobody to draft for, or shares that move."""
    members: Mapping[str, float | str] = info.data.get("members", {})
    others = [name for name, share in members.items() if share and name != speculate.draft]
    if members and speculate.draft not in members:
        given, known = speculate.draft, ", ".join(members)
        raise refuse(f"got draft: {given}; expected one of the blend's members: {known}")
    if members and not others:
        given = speculate.draft
        raise refuse(f"got draft: {given}; expected another member with a weight, to draft for")
    if info.data.get("adapt") is not None:
        raise refuse("expected no adapt with it: such weights are known one token at a time")
