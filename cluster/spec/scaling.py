"""How many replicas there are, and what decides it: of members and rankers, and of routers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from cluster.spec.frozen import Frozen
from cluster.spec.resources import ResourcesSpec
from cluster.spec.values import refuse

_WAKE_TIMEOUT_S = 180.0


class PacedSpec(Frozen):
    """How fast a number of replicas follows the load."""

    window_s: float = Field(
        default=20.0,
        ge=1,
        allow_inf_nan=False,
        description="seconds over which load is averaged, at least 1",
    )
    upscale_delay_s: float = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that more replicas must be wanted before they start, at least 0",
    )
    downscale_delay_s: float = Field(
        default=300.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that fewer replicas must do before some leave, at least 0",
    )


class AutoscalingSpec(PacedSpec):
    """A range of replicas, grown and shrunk with what a model has to do.

    By pressure, a lease counts for the share of time that the engine has work for it: in a mixture
    every reply holds one on every member, however seldom that member speaks.
    """

    min_replicas: int = Field(
        default=1, ge=0, description="a whole number of at least 0 (0: none while nobody asks)"
    )
    max_replicas: int = Field(
        ge=1, description="a whole number of at least 1, and at least min_replicas"
    )
    by: Literal["pressure", "leases"] = Field(
        default="pressure",
        description="one of pressure (leases that the engine has work for), leases (all of them)",
    )
    target_leases: float = Field(
        default=8.0,
        gt=0,
        allow_inf_nan=False,
        description="leases per replica to aim at, a number above 0",
    )
    wake_timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="seconds that a lease may wait for a member without replicas, above 0",
    )

    @property
    def wake_s(self) -> float | None:
        """How long a lease waits while there is no replica; None where there always is one."""
        return None if self.min_replicas else self.wake_timeout_s or _WAKE_TIMEOUT_S

    @field_validator("max_replicas")
    @classmethod
    def _not_below_min(cls, max_replicas: int, info: ValidationInfo) -> int:
        if max_replicas < info.data.get("min_replicas", 1):
            raise refuse(f"expected at least min_replicas, which is {info.data['min_replicas']}")
        return max_replicas

    @field_validator("wake_timeout_s")
    @classmethod
    def _only_where_it_sleeps(cls, wake_s: float | None, info: ValidationInfo) -> float | None:
        if wake_s is not None and info.data.get("min_replicas", 0) > 0:
            raise refuse("expected none: only with min_replicas: 0 is there no replica at times")
        return wake_s


class RoutersSpec(PacedSpec):
    """A range of router replicas, grown and shrunk with the generations under way."""

    min: int = Field(default=1, ge=1, description="a whole number of at least 1")
    max: int = Field(default=1, ge=1, description="a whole number of at least min")
    target_generations: float = Field(
        default=64.0,
        gt=0,
        allow_inf_nan=False,
        description="generations under way per router to aim at, a number above 0",
    )
    resources: ResourcesSpec = Field(
        default=ResourcesSpec(num_cpus=0.1),  # set aside; a router takes what it needs
        description="a mapping such as {num_cpus: 1, custom: {router_node: 1}}, without GPUs",
    )

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, most: int, info: ValidationInfo) -> int:
        if most < info.data.get("min", 1):
            raise refuse(f"expected at least min, which is {info.data['min']}")
        return most

    @field_validator("resources")
    @classmethod
    def _without_gpus(cls, resources: ResourcesSpec) -> ResourcesSpec:
        if resources.num_gpus > 0:
            raise refuse("expected num_gpus: 0, since routers compute nothing")
        return resources


def _range(given: Any) -> Any:
    """A number means so many, always."""
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 1:
            raise refuse("expected a whole number of at least 1, or a range such as {max: 4}")
        return {"min": given, "max": given}
    return given


Routers = Annotated[RoutersSpec, BeforeValidator(_range)]
