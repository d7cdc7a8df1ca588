"""The blend file: one YAML, validated once into a frozen tree.

    spec = load_spec("blend.yaml")          # or raise SpecError listing every problem with its line
    spec.blends["demo"].weights             # shares, summing to 1
    spec.revision_of("demo")                # what clients see as the blend's revision
    ClusterSpec.model_validate(spec.to_mapping()) == spec

Importing this costs pydantic and PyYAML, never torch or transformers.
"""

from cluster.spec.blend import AdaptSpec, BlendBase, MixtureSpec, SamplingSpec
from cluster.spec.combined import ContrastSpec, EnsembleSpec, ProxySpec
from cluster.spec.load import load_spec, parse_mapping, parse_spec
from cluster.spec.member import AutoscalingSpec, MemberSpec, ResourcesSpec
from cluster.spec.model import BlendSpec, ClusterSpec, LimitsSpec, ServingSpec
from cluster.spec.values import FrozenMapping, Span, parse_size

__all__ = [
    "AdaptSpec",
    "AutoscalingSpec",
    "BlendBase",
    "BlendSpec",
    "ClusterSpec",
    "ContrastSpec",
    "EnsembleSpec",
    "FrozenMapping",
    "LimitsSpec",
    "MemberSpec",
    "MixtureSpec",
    "ProxySpec",
    "ResourcesSpec",
    "SamplingSpec",
    "ServingSpec",
    "Span",
    "load_spec",
    "parse_mapping",
    "parse_size",
    "parse_spec",
]
