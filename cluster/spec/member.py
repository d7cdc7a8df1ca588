"""A member: a model that speaks, and the room its replicas keep for what was said."""

from __future__ import annotations

from pydantic import Field

from cluster.spec.placed import PlacedSpec
from cluster.spec.values import Bytes


class MemberSpec(PlacedSpec):
    """One model that generates text; shared by all blends that name it."""

    kv_memory_bytes: Bytes | None = Field(
        default=None,
        alias="kv_memory",
        description="a size such as 256MiB; left out, a share of the memory free at load",
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
