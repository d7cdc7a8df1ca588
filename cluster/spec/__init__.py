"""The blend file: one YAML, validated once into a frozen tree.

    spec = load_spec("blend.yaml")          # or raise SpecError listing every problem with its line
    spec.blends["demo"].weights             # shares, summing to 1
    spec.revision_of("demo")                # what clients see as the blend's revision
    ClusterSpec.model_validate(spec.to_mapping()) == spec

Importing this costs pydantic and PyYAML, never torch or transformers.
"""

from cluster.spec.blend import AdaptSpec, BlendBase, MixtureSpec, SamplingSpec
from cluster.spec.combined import CombinedSpec, ContrastSpec, EnsembleSpec, ProxySpec
from cluster.spec.load import load_recipe, load_spec, parse_mapping, parse_spec
from cluster.spec.member import MemberSpec
from cluster.spec.model import BlendSpec, ClusterSpec, LimitsSpec
from cluster.spec.placed import PlacedSpec
from cluster.spec.ranker import RankerSpec
from cluster.spec.recipe import MergedSpec, RecipeSpec
from cluster.spec.replies import ChooseSpec, FuseSpec, ProposingSpec
from cluster.spec.resources import ResourcesSpec
from cluster.spec.route import (
    ExampleGate,
    KeywordGate,
    LearnedGate,
    RouteSpec,
    UncertaintyGate,
)
from cluster.spec.scaling import AutoscalingSpec, RoutersSpec
from cluster.spec.serving import AuthSpec, MetricsSpec, ServingSpec, TlsSpec
from cluster.spec.speculate import SpeculateSpec
from cluster.spec.values import FrozenMapping, Span, parse_size

__all__ = [
    "AdaptSpec",
    "AuthSpec",
    "AutoscalingSpec",
    "BlendBase",
    "BlendSpec",
    "ChooseSpec",
    "ClusterSpec",
    "CombinedSpec",
    "ContrastSpec",
    "EnsembleSpec",
    "ExampleGate",
    "FrozenMapping",
    "FuseSpec",
    "KeywordGate",
    "LearnedGate",
    "LimitsSpec",
    "MemberSpec",
    "MergedSpec",
    "MetricsSpec",
    "MixtureSpec",
    "PlacedSpec",
    "ProposingSpec",
    "ProxySpec",
    "RankerSpec",
    "RecipeSpec",
    "ResourcesSpec",
    "RouteSpec",
    "RoutersSpec",
    "SamplingSpec",
    "ServingSpec",
    "Span",
    "SpeculateSpec",
    "TlsSpec",
    "UncertaintyGate",
    "load_recipe",
    "load_spec",
    "parse_mapping",
    "parse_size",
    "parse_spec",
]
