"""Blends whose members all take part in every token: their distributions are combined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from cluster.spec.blend import AdaptSpec, BlendBase, WeightedSpec, adapt_parameters, check_floor
from cluster.spec.speculate import SpeculateSpec, check_drafter
from cluster.spec.values import Named, Weights, refuse

DEFAULT_MIN_SHARE = 1e-3  # measured: less changes bits per byte in the fourth digit


class CombinedSpec(BlendBase):
    """Every member tells its distribution of each token, or byte, and a rule makes one of them."""

    unit: Literal["token", "byte"] = Field(
        default="token", description="token, or byte, which needs no common vocabulary"
    )
    min_share: float = Field(
        default=DEFAULT_MIN_SHARE,
        ge=0,
        lt=1,
        description="of unit byte, a number of at least 0 and below 1: splits of the text into "
        "tokens with a smaller share are left out (0: exact, for short texts only)",
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
            if info.data.get("unit") == "byte":
                raise refuse("expected unit: token with it; bytes are not drafted")
            check_drafter(speculate, info)
        return speculate

    @field_validator("min_share")
    @classmethod
    def _is_of_bytes(cls, min_share: float, info: ValidationInfo) -> float:
        if min_share != DEFAULT_MIN_SHARE and info.data.get("unit") == "token":
            raise refuse("expected unit: byte with it; tokens are not split")
        return min_share

    @property
    def draws_together(self) -> bool:
        return True

    @property
    def speculation(self) -> SpeculateSpec | None:
        return self.speculate

    @property
    def by_bytes(self) -> bool:
        return self.unit == "byte"

    @property
    def usable_parameters(self) -> tuple[str, ...]:
        of_the_other_unit = "candidates" if self.by_bytes else "min_share"
        return tuple(name for name in self.parameter_names if name != of_the_other_unit)

    @property
    def needs_one_vocabulary(self) -> bool:
        return not self.by_bytes


class EnsembleSpec(WeightedSpec, CombinedSpec):
    """The weighted mean of the members' distributions, or their weighted product."""

    parameter_names: ClassVar[tuple[str, ...]] = ("candidates", "min_share")

    method: Literal["ensemble"] = Field(description="ensemble")
    rule: Literal["mean", "product"] = Field(
        default="mean", description="mean (Σ λ p) or product (softmax Σ λ log p)"
    )
    members: Weights = Field(
        description="weights of at least 0 by member, such as {austen: 0.5, kjv: 0.5}"
    )
    candidates: int = Field(
        default=256,
        ge=1,
        le=65536,
        description="how many likeliest tokens each member tells, from 1 to 65536",
    )
    exact: bool = Field(
        default=False, description="true to tell all tokens instead of candidates, or false"
    )
    adapt: AdaptSpec | None = Field(
        default=None, description="a mapping such as {strength: 1, window: 128, floor: 0.01}"
    )

    @field_validator("candidates", "exact")
    @classmethod
    def _is_of_tokens(cls, given: int, info: ValidationInfo) -> int:
        assert info.field_name is not None
        default = cls.model_fields[info.field_name].default
        if given != default and info.data.get("unit") == "byte":
            raise refuse("expected unit: token with it; of bytes, members always tell all")
        return given

    @field_validator("adapt")
    @classmethod
    def _can_adapt(cls, adapt: AdaptSpec | None, info: ValidationInfo) -> AdaptSpec | None:
        tells_all = info.data.get("exact") or info.data.get("unit") == "byte"
        if adapt is not None and not (info.data.get("rule") == "mean" and tells_all):
            raise refuse(
                "expected rule: mean and exact: true or unit: byte with it; others have fixed "
                "weights"
            )
        if adapt is not None and info.data.get("speculate") is not None:
            raise refuse("expected no speculate with it: weights are known one token at a time")
        return check_floor(adapt, info)

    @property
    def rule_name(self) -> str:
        return self.rule

    @property
    def usable_parameters(self) -> tuple[str, ...]:
        return (*super().usable_parameters, *adapt_parameters(self.adapt))


def _check_roles(*expected: str) -> Any:
    def check(roles: Mapping[str, str]) -> Mapping[str, str]:
        if Counter(roles.values()) != Counter(expected):
            raise refuse(f"expected each of {', '.join(expected)} once")
        return roles

    return AfterValidator(check)


class ProxySpec(CombinedSpec):
    """A large model steered by the difference of two small ones (2401.08565, equation 1)."""

    parameter_names: ClassVar[tuple[str, ...]] = ("alpha", "min_share")

    method: Literal["proxy"] = Field(description="proxy")
    members: Annotated[
        Named[Literal["base", "expert", "anti"]], _check_roles("base", "expert", "anti")
    ] = Field(description="a role by member: base, expert or anti, each once")
    alpha: float = Field(
        default=1.0, allow_inf_nan=False, description="how far to steer, a finite number"
    )


class ContrastSpec(CombinedSpec):
    """What an expert finds likely and an amateur does not (contrastive decoding, 2210.15097)."""

    parameter_names: ClassVar[tuple[str, ...]] = ("beta", "plausibility", "min_share")

    method: Literal["contrast"] = Field(description="contrast")
    members: Annotated[Named[Literal["expert", "amateur"]], _check_roles("expert", "amateur")] = (
        Field(description="a role by member: expert or amateur, each once")
    )
    beta: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="the amateur's weight, at least 0"
    )
    plausibility: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="least share of the expert's best token's probability, above 0 and at most 1",
    )
