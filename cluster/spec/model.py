"""The blend file as one tree: members, blends of them, rankers, and how they are served.

This knows nothing of YAML, of tokenizers or of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from cluster.spec.blend import MixtureSpec
from cluster.spec.combined import ContrastSpec, EnsembleSpec, ProxySpec
from cluster.spec.frozen import Frozen
from cluster.spec.member import MemberSpec
from cluster.spec.ranker import RankerSpec
from cluster.spec.references import OWN_RANKS, Location, Problem, dangling, rankers_of
from cluster.spec.replies import ChooseSpec, FuseSpec
from cluster.spec.route import RouteSpec
from cluster.spec.serving import ServingSpec
from cluster.spec.values import FrozenMapping, Named, refuse

_REVISION_LENGTH = 12

BlendSpec = Annotated[
    MixtureSpec | EnsembleSpec | ProxySpec | ContrastSpec | ChooseSpec | FuseSpec | RouteSpec,
    Field(discriminator="method"),
]


class LimitsSpec(Frozen):
    """What one request may ask for, and what one router takes on."""

    max_prompt_tokens: int = Field(default=16384, ge=1, description="tokens, at least 1")
    max_new_tokens: int = Field(default=1024, ge=1, description="tokens, at least 1")
    max_concurrent_generations: int = Field(
        default=256, ge=1, description="generations at one time per router, at least 1"
    )
    max_waiting_generations: int = Field(
        default=256, ge=0, description="generations that may wait for that per router, at least 0"
    )
    max_wait_s: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds they may wait, above 0"
    )
    max_deadline_s: float = Field(
        default=600.0, gt=0, allow_inf_nan=False, description="seconds, a number above 0"
    )
    lease_timeout_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds to wait for a replica, above 0",
    )


class ClusterSpec(Frozen):
    """One blend file."""

    version: int = Field(ge=1, le=1, description="1, the only version this Cuvée reads")
    members: Named[MemberSpec] = Field(
        min_length=1, description="members by name, such as {austen: {model: embedded:tiny-austen}}"
    )
    blends: Named[BlendSpec] = Field(
        min_length=1, description="blends by name, such as {demo: {method: mixture, members: …}}"
    )
    rankers: Named[RankerSpec] = Field(
        default=FrozenMapping({}),
        description="rankers by name, such as {judge: {model: org/reward, kind: reward}}",
    )
    serving: ServingSpec = Field(
        default=ServingSpec(), description="a mapping such as {host: 127.0.0.1, port: 9000}"
    )
    limits: LimitsSpec = Field(
        default=LimitsSpec(), description="a mapping such as {max_new_tokens: 1024}"
    )

    @model_validator(mode="after")
    def _names_exist(self) -> ClusterSpec:
        blends = {name: tuple(blend.members) for name, blend in self.blends.items()}
        found = dangling(
            tuple(self.members),
            blends,
            self.serving.default_blend,
            tuple(self.rankers),
            {name: self.rankers_of(name) for name in self.blends},
        )
        found += [
            Problem(
                ("blends", name, *location),
                f"ranker {ranker!r} is of kind {self.rankers[ranker].kind}; expected embedding",
            )
            for name in self.blends
            for location, ranker in self.rankers_of(name).items()
            if location[0] == "gate"
            and ranker in self.rankers
            and self.rankers[ranker].kind != "embedding"
        ]
        if found:
            raise refuse("; ".join(f"{problem.field}: {problem.message}" for problem in found))
        return self

    @property
    def default_blend(self) -> str:
        """The blend of requests that name none: `serving.default_blend`, else the file's first."""
        return self.serving.default_blend or next(iter(self.blends))

    @field_validator("rankers")
    @classmethod
    def _not_own_ranks(cls, rankers: Mapping[str, RankerSpec]) -> Mapping[str, RankerSpec]:
        for name in rankers:
            if name in OWN_RANKS:
                raise refuse(f"expected no ranker named {name}: it means a rule of its own")
        return rankers

    def rankers_of(self, blend: str) -> dict[Location, str]:
        """The rankers that a blend names, by the field that names them."""
        return rankers_of(self.blends[blend].model_dump(include={"rank", "gate"}))

    def revision_of(self, blend: str) -> str:
        """A short hash of what decides a blend's text: method, weights, sampling, models, dtypes.

        Replicas, memory, device and descriptions are left out: clients compare revisions to know
        whether answers may differ, and scaling must not look like a new blend. Weights count as
        shares, in order. Models are hashed by name, not by content.
        """
        chosen = self.blends[blend]
        content = chosen.model_dump(mode="json", exclude=chosen.not_in_revision)
        content["weights"] = [(name, round(share, 12)) for name, share in chosen.weights.items()]
        if chosen.roles:
            content["roles"] = list(chosen.roles.items())
        content["models"] = [_decides_text(self.members[name]) for name in chosen.members]
        if rankers := self.rankers_of(blend).values():
            content["rankers"] = [
                self.rankers[name].model_dump(
                    mode="json", include={"model", "revision", "dtype", "kind", "template"}
                )
                for name in rankers
            ]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:_REVISION_LENGTH]

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, such as JSON and YAML hold; `ClusterSpec.model_validate` gives it back."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _decides_text(member: MemberSpec) -> dict[str, Any]:
    """What of a member decides what it says; a cache in its own dtype rounds nothing."""
    fields = {"model", "revision", "dtype", "max_context"}
    fields |= {"kv_dtype"} if member.cached_dtype != member.dtype else set()
    return member.model_dump(mode="json", include=fields)
