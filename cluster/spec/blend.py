"""A blend: members with weights, and the method that makes one voice of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from cluster.errors import Unsupported
from cluster.spec.frozen import Frozen
from cluster.spec.values import FrozenMapping, Span, Weights


class SamplingSpec(Frozen):
    """What requests get that do not say otherwise; the meaning is `SamplingParams`'s."""

    temperature: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="a number of at least 0 (0: greedy)"
    )
    top_k: int = Field(
        default=0, ge=0, description="a whole number of at least 0 (0: no truncation)"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="a number above 0 and at most 1")
    min_p: float = Field(default=0.0, ge=0, le=1, description="a number between 0 and 1")


class MixtureSpec(Frozen):
    """Each span is spoken by one member, drawn by weight."""

    method: Literal["mixture"] = Field(description="mixture, the only method of this version")
    span: Span | None = Field(
        default=None,
        description="one of token, word, sentence, response, or a whole number of tokens; "
        "left out, token, or word where tokenizers differ",
    )
    members: Weights = Field(
        description="weights of at least 0 by member, such as {austen: 0.5, kjv: 0.5}"
    )
    exact: bool = Field(
        default=False,
        description="true to refuse members that cannot exchange token ids, or false",
    )
    sampling: SamplingSpec = Field(
        default=SamplingSpec(), description="a mapping such as {temperature: 0.8, top_p: 0.95}"
    )
    description: str = Field(default="", description="text")

    @property
    def weights(self) -> FrozenMapping[str, float]:
        """The members' shares, summing to 1, in the file's order."""
        total = math.fsum(self.members.values())
        return FrozenMapping({name: weight / total for name, weight in self.members.items()})

    def span_for(self, *, one_vocabulary: bool) -> Span:
        """The span, once it is known whether all members share one vocabulary."""
        return self.span or ("token" if one_vocabulary else "word")

    def check_vocabularies(self, name: str, fingerprints: Mapping[str, str]) -> None:
        """Raise Unsupported if the blend is to be exact and its members' vocabularies differ.

        Only with one vocabulary do members mean the same by a token, so only then is the law of
        `mixture` the ensemble's.
        """
        groups: dict[str, list[str]] = {}
        for member in self.members:
            groups.setdefault(fingerprints[member], []).append(member)
        if self.exact and len(groups) > 1:
            words = "; ".join(", ".join(members) for members in groups.values())
            raise Unsupported(
                "VOCABULARY_MISMATCH",
                f"blend {name!r} is exact, but its members have {len(groups)} vocabularies "
                f"({words}); expected one, or exact: false to exchange text",
                field="blend",
            )


BlendSpec = MixtureSpec  # becomes a union discriminated by `method` with the second method
