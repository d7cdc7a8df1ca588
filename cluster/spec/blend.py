"""A blend: members with weights, and the method that makes one voice of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cluster.errors import InvalidRequest, Unsupported
from cluster.spec.frozen import Frozen
from cluster.spec.speculate import SpeculateSpec, check_drafter
from cluster.spec.values import FrozenMapping, Span, Weights, refuse


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


class BlendBase(Frozen):
    """What all blends have, whatever their method."""

    parameter_names: ClassVar[tuple[str, ...]] = ()  # numbers that a request may override
    not_in_revision: ClassVar[set[str]] = {  # what changes no text, or is told in another way
        "description",
        "members",
        "on_member_loss",
        "speculate",
    }

    method: str
    members: Mapping[str, float | str]  # weights or roles, by member
    sampling: SamplingSpec = Field(
        default=SamplingSpec(), description="a mapping such as {temperature: 0.8, top_p: 0.95}"
    )
    description: str = Field(default="", description="text")
    on_member_loss: Literal["wait", "fail"] = Field(
        default="wait",
        description="when a member has no replica left: wait for one (limits.lease_timeout_s at "
        "most), or fail at once",
    )

    @property
    def weights(self) -> FrozenMapping[str, float]:
        """The members' shares, summing to 1, in the file's order; none where they have roles."""
        given = {name: w for name, w in self.members.items() if not isinstance(w, str)}
        total = math.fsum(given.values())
        return FrozenMapping({name: weight / total for name, weight in given.items()})

    @property
    def roles(self) -> Mapping[str, str]:
        """What each member does, in methods that give roles instead of weights."""
        return {name: role for name, role in self.members.items() if isinstance(role, str)}

    @property
    def by_bytes(self) -> bool:
        """Whether members tell distributions over bytes instead of tokens."""
        return False

    @property
    def usable_parameters(self) -> tuple[str, ...]:
        """Those of its numbers that mean something in this blend."""
        return self.parameter_names

    @property
    def parameters(self) -> dict[str, float]:
        """The method's numbers by name, those that count here."""
        given = {name: attrgetter(name)(self) for name in self.usable_parameters}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def needs_one_vocabulary(self) -> bool:
        """Whether members must mean the same by a token."""
        return True

    @property
    def rule_name(self) -> str:
        """What tells blends of one method apart: a rule, a ranker, a gate; empty where nothing."""
        return ""

    @property
    def speculation(self) -> SpeculateSpec | None:
        """Who drafts, where somebody does."""
        return None

    @property
    def draws_together(self) -> bool:
        """Whether all members take part in each token."""
        return False

    def span_for(self, *, one_vocabulary: bool) -> Span:
        """The span, once it is known whether all members share one vocabulary."""
        return "token"

    def with_parameters(self, given: Mapping[str, float]) -> Self:
        """The same with other numbers; raises InvalidRequest with the request's field."""
        if not given:
            return self
        values = self.model_dump()
        for name, value in given.items():
            if name not in self.usable_parameters:
                known = ", ".join(self.usable_parameters) or "none"
                raise InvalidRequest(
                    "UNKNOWN_PARAMETER",
                    f"got {name!r}; expected a parameter of method {self.method}: {known}",
                    field=f"overrides.parameters[{name}]",
                )
            is_whole = self._field(name).annotation is int and float(value).is_integer()
            *outer, last = name.split(".")
            inner = values[outer[0]] if outer else values
            inner[last] = int(value) if is_whole else float(value)
        try:
            return type(self).model_validate(values)
        except ValidationError as error:
            raise self._bad_parameter(error.errors()[0], given) from None

    def _bad_parameter(self, error: ErrorDetails, given: Mapping[str, float]) -> InvalidRequest:
        """Blames the parameter found wrong, or the first one that made another number wrong."""
        wrong = ".".join(map(str, error["loc"]))
        blamed = wrong if wrong in given else next(iter(given))
        expected = self._field(wrong).description
        of_other = "" if wrong == blamed else f" as {wrong}"
        return InvalidRequest(
            "INVALID_VALUE",
            f"got {given[blamed]:g}; expected {expected}{of_other}",
            field=f"overrides.parameters[{blamed}]",
        )

    def _field(self, name: str) -> FieldInfo:
        """The field of a parameter, such as `top` or `adapt.floor`."""
        *outer, last = name.split(".")
        owner = attrgetter(outer[0])(self) if outer else self
        found: FieldInfo = type(owner).model_fields[last]
        return found

    def check_vocabularies(self, name: str, fingerprints: Mapping[str, str]) -> None:
        """Raise Unsupported if the members must share one vocabulary and do not.

        Only with one do they mean the same by a token, so only then can a law be exact.
        """
        groups: dict[str, list[str]] = {}
        for member in self.members:
            groups.setdefault(fingerprints[member], []).append(member)
        if self.needs_one_vocabulary and len(groups) > 1:
            words = "; ".join(", ".join(members) for members in groups.values())
            why = (
                "wants one vocabulary" if self.method == "mixture" else f"has method {self.method}"
            )
            other = "unit: byte, or " if self.draws_together else ""
            raise Unsupported(
                "VOCABULARY_MISMATCH",
                f"blend {name!r} {why}, but its members have {len(groups)} vocabularies "
                f"({words}); expected one, or {other}method mixture without exact, adapt or "
                "speculate",
                field="blend",
            )


class WeightedSpec(BlendBase):
    """A blend whose members have weights, so that the others can go on without one."""

    on_member_loss: Literal["wait", "renormalise", "fail"] = Field(  # type: ignore[assignment]
        default="wait",
        description="when a member has no replica left: wait for one (limits.lease_timeout_s at "
        "most), renormalise the weights of the others and go on, or fail at once",
    )


class AdaptSpec(Frozen):
    """Weights that follow the transcript; `cluster.blending.adaptive` has the rule."""

    evidence: Literal["reply", "prompt", "both"] = Field(
        default="reply", description="what the weights follow: reply, prompt or both"
    )

    strength: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="a number of at least 0 (1: Bayes)"
    )
    window: int = Field(default=0, ge=0, description="tokens looked back at (0: all)")
    floor: float = Field(
        default=0.01, ge=0, lt=1, description="each member's least share, at least 0"
    )


def adapt_parameters(adapt: AdaptSpec | None) -> tuple[str, ...]:
    """The names of its numbers, where a blend adapts."""
    return () if adapt is None else ("adapt.strength", "adapt.window", "adapt.floor")


def check_floor(adapt: AdaptSpec | None, info: ValidationInfo) -> AdaptSpec | None:
    """Refuse a floor that the members' shares cannot have together."""
    num_members = len(info.data.get("members", ()))
    if adapt is not None and adapt.floor * num_members > 1:
        raise refuse(f"expected a floor of at most 1/{num_members}, one share of {num_members}")
    return adapt


class MixtureSpec(WeightedSpec):
    """Each span is spoken by one member, drawn by weight."""

    not_in_revision: ClassVar[set[str]] = BlendBase.not_in_revision | {"exact"}

    method: Literal["mixture"] = Field(description="mixture")
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
    adapt: AdaptSpec | None = Field(
        default=None, description="a mapping such as {strength: 1, window: 128, floor: 0.01}"
    )
    speculate: SpeculateSpec | None = Field(
        default=None, description="a mapping such as {draft: small, max_tokens: 8}"
    )

    @field_validator("speculate")
    @classmethod
    def _can_speculate(
        cls, speculate: SpeculateSpec | None, info: ValidationInfo
    ) -> SpeculateSpec | None:
        if speculate is not None:
            if info.data.get("span") not in (None, "token"):
                raise refuse("expected span: token with it; others are one member's to speak")
            check_drafter(speculate, info)
        return speculate

    @field_validator("adapt")
    @classmethod
    def _can_adapt(cls, adapt: AdaptSpec | None, info: ValidationInfo) -> AdaptSpec | None:
        is_one_span = info.data.get("span") == "response"
        if adapt is not None and is_one_span and adapt.evidence != "prompt":
            raise refuse(
                "expected a span shorter than response, since only who speaks again can adapt to "
                "the reply; or evidence: prompt"
            )
        return check_floor(adapt, info)

    @property
    def usable_parameters(self) -> tuple[str, ...]:
        return adapt_parameters(self.adapt)

    @property
    def needs_one_vocabulary(self) -> bool:
        return self.exact or self.adapt is not None or self.speculate is not None

    @property
    def speculation(self) -> SpeculateSpec | None:
        return self.speculate

    def span_for(self, *, one_vocabulary: bool) -> Span:
        return self.span or ("token" if one_vocabulary else "word")
