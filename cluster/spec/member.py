"""A member: a model that speaks, and the room its replicas keep for what was said."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cluster.spec.placed import PlacedSpec
from cluster.spec.values import Bytes, refuse


class MemberSpec(PlacedSpec):
    """One model that generates text; shared by all blends that name it."""

    kv_memory_bytes: Bytes | None = Field(
        default=None,
        alias="kv_memory",
        description="a size such as 256MiB; left out, a share of the memory free at load",
    )
    kv_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="instead of kv_memory, a share of what is free beside the weights at load, "
        "above 0 to 1; left out, 0.25 on processors and 0.8 on GPUs, for at most 32 full sequences",
    )
    kv_dtype: Literal["auto", "bfloat16"] = Field(
        default="auto",
        description="how keys and values are cached: auto (in the model's dtype) or bfloat16",
    )
    cuda_graphs: bool | None = Field(
        default=None,
        description="whether short passes on its GPU are replayed from CUDA graphs where they "
        "can be: true or false; left out, true",
    )
    max_context: int | None = Field(
        default=None,
        ge=2,
        description="tokens, a whole number of at least 2; left out, the model's own",
    )
    cost: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="what a token costs that it processes, against a key's limits and share: "
        "a number of at least 0, such as its billions of parameters",
    )
    tensor_parallel: int | None = Field(
        default=None,
        ge=1,
        validate_default=True,  # for the check against resources
        description="devices that share a replica's weights and cache; left out, num_gpus",
    )

    @property
    def cached_dtype(self) -> str:
        """The dtype of its keys and values; `auto` is the checkpoint's own."""
        return self.dtype if self.kv_dtype == "auto" else self.kv_dtype

    @property
    def num_shards(self) -> int:
        """How many devices one replica is split over."""
        return self.tensor_parallel or max(1, int(self.resources.num_gpus))

    @field_validator("kv_share")
    @classmethod
    def _not_both_sizes(cls, share: float | None, info: ValidationInfo) -> float | None:
        if share is not None and info.data.get("kv_memory_bytes") is not None:
            raise refuse("expected either kv_memory or kv_share, not both")
        return share

    @field_validator("cuda_graphs")
    @classmethod
    def _on_one_gpu(cls, wanted: bool | None, info: ValidationInfo) -> bool | None:
        resources = info.data.get("resources")
        if wanted is not None and resources is not None and not 0 < resources.num_gpus <= 1:
            raise refuse("expected num_gpus above 0 and up to 1 with cuda_graphs")
        return wanted

    @field_validator("tensor_parallel")
    @classmethod
    def _a_gpu_each(cls, num_shards: int | None, info: ValidationInfo) -> int | None:
        resources = info.data.get("resources")
        if num_shards is None or resources is None or resources.num_gpus == 0:
            return num_shards
        if num_shards != max(1, resources.num_gpus):
            raise refuse(f"expected num_gpus: {num_shards} with it, a GPU for each part")
        return num_shards
