"""A ranker: a model that judges whole replies instead of writing them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cluster.spec.placed import PlacedSpec
from cluster.spec.resources import ResourcesSpec
from cluster.spec.templates import check_template
from cluster.spec.values import refuse

PAIR_TEMPLATE = (  # as PairRM (2306.02561) was trained
    "<|source|>{{ prompt }}<|candidate1|>{{ first }}<|candidate2|>{{ second }}"
)


class RankerSpec(PlacedSpec):
    """One model that ranks replies; shared by all blends that name it."""

    kind: Literal["reward", "pairwise", "embedding"] = Field(
        description="one of reward (how good a reply is), pairwise (which of two is better), "
        "embedding (how alike replies are)"
    )
    template: str | None = Field(
        default=None,
        description="a Jinja template with prompt, first and second, for kind pairwise",
    )

    @field_validator("resources")
    @classmethod
    def _at_most_one_gpu(cls, resources: ResourcesSpec) -> ResourcesSpec:
        if resources.num_gpus > 1:
            raise refuse("expected num_gpus of at most 1: rankers are not split over GPUs")
        return resources

    @field_validator("template")
    @classmethod
    def _only_for_pairs(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None:
            return None
        if info.data.get("kind") != "pairwise":
            raise refuse("expected no template: only kind pairwise has one")
        return check_template(template, needs=("first", "second"), knows=("prompt",))
