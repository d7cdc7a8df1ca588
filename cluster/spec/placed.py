"""What every served model has: where it comes from, on what hardware it runs, how many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from cluster.models.reference import EXPECTED, ModelKind, ModelReference
from cluster.spec.frozen import Frozen
from cluster.spec.recipe import MergedSpec
from cluster.spec.resources import ResourcesSpec
from cluster.spec.scaling import AutoscalingSpec
from cluster.spec.values import ModelName, refuse

MODEL_TAGS = ("model-name", "model-merge")  # of the two things that a model may be

ModelField = Annotated[
    Annotated[ModelName, Tag(MODEL_TAGS[0])] | Annotated[MergedSpec, Tag(MODEL_TAGS[1])],
    Discriminator(lambda given: MODEL_TAGS[isinstance(given, Mapping | MergedSpec)]),
]


class PlacedSpec(Frozen):
    """A model from somewhere, and how its replicas run."""

    model: ModelField = Field(description=f"{EXPECTED}, or {{merge: a recipe}}")
    revision: str | None = Field(
        default=None, description="a branch, tag or commit of a hub repository, as text"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="one of auto (the checkpoint's own), float32, bfloat16, float16"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="one of auto (cuda when num_gpus is above 0), cpu, cuda"
    )
    resources: ResourcesSpec = Field(
        default=ResourcesSpec(),
        validate_default=True,  # for the check against device
        description="a mapping such as {num_cpus: 1, num_gpus: 0}",
    )
    replicas: int | None = Field(
        default=None, ge=1, description="a whole number of at least 1, or use autoscaling instead"
    )
    autoscaling: AutoscalingSpec | None = Field(
        default=None,
        description="a mapping such as {min_replicas: 1, max_replicas: 4, target_leases: 8}",
    )

    @property
    def model_name(self) -> str:
        """What its model is called everywhere; a merge by its method and a hash of its recipe."""
        return self.model.merge.name if isinstance(self.model, MergedSpec) else self.model

    @property
    def reference(self) -> ModelReference | None:
        """Where its model is; None for one that is made of others."""
        return ModelReference.parse(self.model) if isinstance(self.model, str) else None

    @property
    def references(self) -> tuple[ModelReference, ...]:
        """Where its weights come from: its model, or all that a merge is made of."""
        if isinstance(self.model, str):
            return (ModelReference.parse(self.model),)
        recipe = self.model.merge
        names = [given.model for given in recipe.inputs]
        names += [recipe.base_model] if recipe.base_model else []
        return tuple(map(ModelReference.parse, dict.fromkeys(names)))

    @property
    def min_replicas(self) -> int:
        return self.autoscaling.min_replicas if self.autoscaling else self.replicas or 1

    @property
    def wake_s(self) -> float | None:
        """How long to wait for a replica while there is none; None where there always is one."""
        return self.autoscaling.wake_s if self.autoscaling else None

    @property
    def max_replicas(self) -> int:
        return self.autoscaling.max_replicas if self.autoscaling else self.replicas or 1

    @model_validator(mode="before")
    @classmethod
    def _one_replica_by_default(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("replicas") is None and given.get("autoscaling") is None:
            return {**given, "replicas": 1}
        return given

    @field_validator("revision")
    @classmethod
    def _only_for_the_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        model = info.data.get("model")
        if revision and isinstance(model, MergedSpec):
            raise refuse("expected no revision here: each model of the recipe may have its own")
        if revision and model and ModelReference.parse(model).kind is not ModelKind.HUB:
            raise refuse(f"expected no revision: only hub repositories have one, not {model}")
        return revision

    @field_validator("resources")
    @classmethod
    def _gpu_where_cuda(cls, resources: ResourcesSpec, info: ValidationInfo) -> ResourcesSpec:
        device = info.data.get("device")
        if device == "cpu" and resources.num_gpus > 0:
            raise refuse("expected num_gpus: 0 with device: cpu")
        if device == "cuda" and resources.num_gpus == 0:
            raise refuse("expected num_gpus above 0 with device: cuda; Ray hides GPUs otherwise")
        return resources

    @field_validator("autoscaling")
    @classmethod
    def _not_both(
        cls, autoscaling: AutoscalingSpec | None, info: ValidationInfo
    ) -> AutoscalingSpec | None:
        if autoscaling and info.data.get("replicas") is not None:
            raise refuse("expected either replicas or autoscaling, not both")
        return autoscaling
