"""Blends in which a gate decides who speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from cluster.spec.blend import WeightedSpec
from cluster.spec.frozen import Frozen
from cluster.spec.values import (
    FilePath,
    FrozenMapping,
    Listed,
    Name,
    Named,
    Span,
    Weight,
    Weights,
    refuse,
)


class UncertaintyGate(Frozen):
    """One member speaks; spans that it is not sure of go to the others."""

    by: Literal["confidence", "entropy"] = Field(description="confidence or entropy")
    first: Name = Field(description="the member that speaks while it is sure")

    @property
    def named(self) -> tuple[str, ...]:
        """The members that it names."""
        return (self.first,)


class KeywordRule(Frozen):
    """Which prompts are whose."""

    match: str = Field(description="a regular expression to find in the prompt")
    member: Name = Field(description="the member that answers such prompts")

    @field_validator("match")
    @classmethod
    def _is_pattern(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise refuse(f"expected a regular expression: {error}") from None
        return match


class KeywordGate(Frozen):
    """The first rule that the prompt's last message matches decides."""

    by: Literal["keywords"] = Field(description="keywords")
    rules: Listed[KeywordRule] = Field(
        description="a list of rules such as [{match: '(?i)psalm', member: kjv}]"
    )

    @field_validator("rules")
    @classmethod
    def _not_empty(cls, rules: tuple[KeywordRule, ...]) -> tuple[KeywordRule, ...]:
        if not rules:
            raise refuse("expected at least one rule")
        return rules

    otherwise: Name = Field(description="the member that answers where no rule matches")

    @property
    def named(self) -> tuple[str, ...]:
        """The members that it names."""
        return (*(rule.member for rule in self.rules), self.otherwise)


class ExampleGate(Frozen):
    """The member whose example prompts are most like the prompt, by an embedding."""

    by: Literal["examples"] = Field(description="examples")
    ranker: Name = Field(description="the name of a ranker of kind embedding")
    examples: Named[Listed[str]] = Field(
        description="a list of prompts by member, such as {kjv: [A psalm, …]}"
    )

    @field_validator("examples")
    @classmethod
    def _not_empty(cls, examples: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        if not examples or not all(map(all, examples.values())) or not all(examples.values()):
            raise refuse("expected at least one member with at least one prompt each, none empty")
        return examples

    sharpness: float = Field(
        default=20.0, gt=0, allow_inf_nan=False, description="logits per unit of cosine, above 0"
    )

    @property
    def named(self) -> tuple[str, ...]:
        """The members that it names."""
        return tuple(self.examples)


class LearnedGate(Frozen):
    """A trained network over a member's hidden state or over the prompt's embedding."""

    by: Literal["learned"] = Field(description="learned")
    file: FilePath = Field(description="the file that `cuvee gate train` writes")
    reader: Name | None = Field(
        default=None, description="the member whose hidden state it reads, or use ranker instead"
    )
    ranker: Name | None = Field(
        default=None,
        validate_default=True,
        description="the name of a ranker of kind embedding, or use reader instead",
    )

    @field_validator("ranker")
    @classmethod
    def _one_source(cls, ranker: str | None, info: ValidationInfo) -> str | None:
        if (ranker is None) == (info.data.get("reader") is None):
            raise refuse("expected either reader or ranker")
        return ranker

    @property
    def named(self) -> tuple[str, ...]:
        """The members that it names."""
        return (self.reader,) if self.reader else ()


Gate = Annotated[
    UncertaintyGate | KeywordGate | ExampleGate | LearnedGate, Field(discriminator="by")
]
GATES: dict[str, type[Frozen]] = {
    "confidence": UncertaintyGate,
    "entropy": UncertaintyGate,
    "keywords": KeywordGate,
    "examples": ExampleGate,
    "learned": LearnedGate,
}


class RouteSpec(WeightedSpec):
    """A gate decides at the beginning of each span, or from the prompt, who speaks."""

    parameter_names: ClassVar[tuple[str, ...]] = ("threshold", "top", "price")

    method: Literal["route"] = Field(description="route")
    members: Weights = Field(
        description="weights of at least 0 by member, such as {small: 1, large: 1}"
    )
    span: Span | None = Field(
        default=None,
        description="one of token, word, sentence, response, or a whole number of tokens; "
        "left out, token, or word where tokenizers differ",
    )
    gate: Gate = Field(description="a mapping such as {by: confidence, first: small}")
    threshold: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        validate_default=True,
        description="the confidence below which, or the entropy in nats above which, the others "
        "speak, at least 0",
    )
    top: int = Field(
        default=1, ge=1, description="how many members share the word, from 1 to all of them"
    )
    costs: Named[Weight] = Field(
        default=FrozenMapping({}),
        description="what members cost, such as {small: 1, large: 8}; who is left out costs 0",
    )
    price: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="what a unit of cost takes off a member's logit, at least 0",
    )

    @field_validator("gate")
    @classmethod
    def _names_members(cls, gate: Any, info: ValidationInfo) -> Any:
        members = info.data.get("members", {})
        for name in gate.named:
            if members and name not in members:
                raise refuse(f"expected members of the blend; {name!r} is none of it")
        return gate

    @field_validator("threshold")
    @classmethod
    def _where_unsure(cls, threshold: float | None, info: ValidationInfo) -> float | None:
        by = getattr(info.data.get("gate"), "by", None)
        if by in ("confidence", "entropy"):
            if threshold is None:
                raise refuse("expected a number: the gate's threshold")
            if by == "confidence" and threshold > 1:
                raise refuse("expected a confidence of at most 1")
        elif by is not None and threshold is not None:
            raise refuse("expected none: only gates by confidence or entropy have a threshold")
        return threshold

    @field_validator("top")
    @classmethod
    def _at_most_all(cls, top: int, info: ValidationInfo) -> int:
        by = getattr(info.data.get("gate"), "by", None)
        if top > 1 and by not in (None, "examples", "learned"):
            raise refuse("expected 1: only gates by examples or learned ones weigh several members")
        if top > (most := len(info.data.get("members", ())) or top):
            raise refuse(f"expected at most {most}, as many as there are members")
        return top

    @field_validator("costs")
    @classmethod
    def _of_members(cls, costs: Mapping[str, float], info: ValidationInfo) -> Mapping[str, float]:
        members = info.data.get("members", {})
        for name in costs:
            if members and name not in members:
                raise refuse(f"expected members of the blend; {name!r} is none of it")
        return costs

    @field_validator("price")
    @classmethod
    def _of_costs(cls, price: float, info: ValidationInfo) -> float:
        by = getattr(info.data.get("gate"), "by", None)
        if price and (not info.data.get("costs") or by not in ("examples", "learned")):
            raise refuse("expected costs with it, and a gate by examples or a learned one")
        return price

    @property
    def needs_one_vocabulary(self) -> bool:
        return False

    @property
    def rule_name(self) -> str:
        return self.gate.by

    @property
    def decides_once(self) -> bool:
        """Whether the gate decides from the prompt, before anything is said."""
        has_reader = isinstance(self.gate, LearnedGate) and self.gate.reader is not None
        return not has_reader and not isinstance(self.gate, UncertaintyGate)

    def span_for(self, *, one_vocabulary: bool) -> Span:
        return self.span or ("token" if one_vocabulary else "word")
