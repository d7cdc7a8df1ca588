"""A learned gate as one small file: safetensors, with what it was trained for in its metadata."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cluster.blending.gates import Network
from cluster.errors import Unsupported
from cluster.spec import BlendSpec, ClusterSpec, LearnedGate, RouteSpec

_DIGEST_LENGTH = 12


@dataclass(frozen=True, slots=True)
class GateInputs:
    """What a gate decides over and what it reads; one trained for other models knows nothing."""

    members: tuple[tuple[str, str], ...]  # names and models, in the order of its logits
    source: tuple[str, str, str]  # reader or ranker, its name, its model

    @classmethod
    def of(cls, spec: ClusterSpec, blend: RouteSpec) -> GateInputs:
        """What the gate of a blend must have been trained for."""
        gate = blend.gate
        assert isinstance(gate, LearnedGate), "other gates have no file"
        members = tuple((name, spec.members[name].model_name) for name in blend.members)
        if gate.reader is not None:
            return cls(members, ("reader", gate.reader, spec.members[gate.reader].model_name))
        assert gate.ranker is not None, "a gate reads a member or a ranker"
        return cls(members, ("ranker", gate.ranker, spec.rankers[gate.ranker].model_name))

    def __str__(self) -> str:
        kind, name, model = self.source
        members = ", ".join(f"{name} ({model})" for name, model in self.members)
        return f"members {members} and {kind} {name} ({model})"


@dataclass(frozen=True)
class GateFile:
    """A gate that was read, and what names its content."""

    network: Network
    inputs: GateInputs
    digest: str


def save_gate(path: Path, network: Network, inputs: GateInputs) -> None:
    """Write the file whole, or not at all."""
    tensors = {}
    for number, (weights, bias) in enumerate(network.layers):
        tensors[f"layers.{number}.weight"] = np.ascontiguousarray(weights, np.float32)
        tensors[f"layers.{number}.bias"] = np.ascontiguousarray(bias, np.float32)
    metadata = {"members": json.dumps(inputs.members), "source": json.dumps(inputs.source)}
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata)
    part.replace(path)


def gate_of(spec: ClusterSpec, blend: BlendSpec) -> GateFile | None:
    """The gate that a blend has learned, if it is one that learns; raises as `load_gate`."""
    if not (isinstance(blend, RouteSpec) and isinstance(blend.gate, LearnedGate)):
        return None
    return load_gate(Path(blend.gate.file), GateInputs.of(spec, blend))


def load_gate(path: Path, expected: GateInputs) -> GateFile:
    """Read a gate; raises Unsupported where there is none, or one for other models."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGEST_LENGTH]
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        inputs = GateInputs(
            tuple((name, model) for name, model in json.loads(metadata["members"])),
            tuple(json.loads(metadata["source"])),
        )
        num_layers = len(tensors) // 2
        layers = [
            (tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in range(num_layers)
        ]
    except FileNotFoundError:
        raise Unsupported(
            "GATE_NOT_FOUND",
            f"there is no gate {path}; `cuvee gate train` makes one",
            field="gate.file",
        ) from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        message = f"{path} is no gate: {error}; expected a file that `cuvee gate train` wrote"
        raise Unsupported("GATE_INVALID", message, field="gate.file") from None
    if inputs != expected:
        raise Unsupported(
            "GATE_MISMATCH",
            f"{path} was trained for {inputs}; this blend has {expected}; train one for it",
            field="gate.file",
        )
    return GateFile(Network(layers), inputs, digest)
