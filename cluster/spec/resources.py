"""What one replica asks of its node."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, ValidationInfo, field_validator

from cluster.spec.frozen import Frozen
from cluster.spec.values import Amount, Bytes, FrozenMapping, Keyed, refuse

_RAYS_OWN = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


class ResourcesSpec(Frozen):
    """What one replica asks of the node it is placed on."""

    num_cpus: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="a number of CPUs of at least 0, such as 0.5",
    )
    num_gpus: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="a share of one GPU between 0 and 1, or a whole number of GPUs of one node",
    )
    memory_bytes: Bytes | None = Field(
        default=None,
        alias="memory",
        description="a size such as 8GiB, set aside on the node but not enforced",
    )
    accelerator_type: str | None = Field(
        default=None, min_length=1, description="Ray's name of a kind of GPU, such as L4 or H100"
    )
    labels: Keyed[str] = Field(
        default=FrozenMapping({}),
        description="what the node's labels must be, such as {zone: east} or {zone: '!west'}",
    )
    custom: Keyed[Amount] = Field(
        default=FrozenMapping({}),
        description="amounts above 0 of a Ray cluster's own resources, such as {fast_disk: 1}",
    )
    max_per_node: int | None = Field(
        default=None,
        ge=1,
        le=100,  # Serve's own limit
        description="replicas of it on one node at most, a whole number from 1 to 100",
    )

    @field_validator("num_gpus")
    @classmethod
    def _a_share_or_whole(cls, num_gpus: float) -> float:
        if num_gpus > 1 and not num_gpus.is_integer():
            raise refuse("expected a share of one GPU between 0 and 1, or a whole number of GPUs")
        return num_gpus

    @field_validator("accelerator_type")
    @classmethod
    def _only_with_gpus(cls, kind: str | None, info: ValidationInfo) -> str | None:
        if kind is not None and info.data.get("num_gpus") == 0:
            raise refuse("expected num_gpus above 0 with accelerator_type")
        return kind

    @field_validator("custom")
    @classmethod
    def _not_ours(cls, custom: Mapping[str, float]) -> Mapping[str, float]:
        for name in custom:
            if name in _RAYS_OWN:
                raise refuse(f"expected no {name}: {_RAYS_OWN[name]} says that")
        return custom
