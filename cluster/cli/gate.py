"""`cuvee gate train`: fits the learned gate of a blend, and says what it is worth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from cluster.cli.output import print_failure, print_json, print_line
from cluster.errors import CuveeError, InvalidRequest
from cluster.spec import ClusterSpec, LearnedGate, RouteSpec, load_spec

if TYPE_CHECKING:
    from cluster.gates.features import Row
    from cluster.gates.train import Report


def train_gate(
    file: Path,
    data: Path,
    blend: str,
    num_hidden: int,
    held_out: float,
    seed: int,
    as_json: bool,
    console: Console,
) -> int:
    """Train the gate of a blend and write its file; 0 when that was done."""
    try:
        spec = load_spec(file)
        route = _route(spec, blend)
        report = _train(spec, route, data, num_hidden, held_out, seed)
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    assert isinstance(route.gate, LearnedGate), "only these were let through"
    if as_json:
        print_json(console, {"ok": True, "file": route.gate.file, **_as_mapping(report)})
    else:
        _print(console, route.gate.file, report)
    return 0


def _route(spec: ClusterSpec, name: str) -> RouteSpec:
    """The blend whose gate is learned; without a name, the only one there is."""
    learned = {
        n: b
        for n, b in spec.blends.items()
        if isinstance(b, RouteSpec) and isinstance(b.gate, LearnedGate)
    }
    if name in learned:
        return learned[name]
    if not name and len(learned) == 1:
        return next(iter(learned.values()))
    known = ", ".join(learned) or "none in this file"
    raise InvalidRequest(
        "NO_LEARNED_GATE", f"got blend {name!r}; expected one with a learned gate: {known}"
    )


def _train(
    spec: ClusterSpec, route: RouteSpec, data: Path, num_hidden: int, held_out: float, seed: int
) -> Report:
    from cluster.gates.examples import read_examples
    from cluster.gates.features import Features
    from cluster.gates.file import GateInputs, save_gate
    from cluster.gates.train import NUM_EPOCHS, train

    assert isinstance(route.gate, LearnedGate), "only these were let through"
    examples = read_examples(data, list(route.members))
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        loading = progress.add_task("loading models", total=None)
        features = Features(spec, route)
        progress.remove_task(loading)
        rows: list[list[Row]] = [
            list(features.rows(example))
            for example in progress.track(examples, description="reading examples")
        ]
        fitting = progress.add_task("fitting", total=NUM_EPOCHS)
        network, report = train(
            rows,
            num_hidden=num_hidden,
            held_out=held_out,
            seed=seed,
            progress=lambda epoch: progress.update(fitting, completed=epoch),
        )
    save_gate(Path(route.gate.file), network, GateInputs.of(spec, route))
    return report


def _print(console: Console, file: str, report: Report) -> None:
    print_line(console, f"held out: {report.num_examples} examples, {report.num_rows} decisions")
    print_line(
        console,
        f"accuracy  {report.accuracy:.1%}  (always the most common member: "
        f"{report.most_common:.1%})",
    )
    print_line(
        console,
        f"loss      {report.loss:.4f} nats  (fixed weights: {report.constant_loss:.4f})",
    )
    if report.loss >= report.constant_loss:
        print_line(console, "! this gate is no better than fixed weights: do without it")
    print_line(console, f"written to {file}")


def _as_mapping(report: Report) -> dict[str, float | int]:
    return {name: getattr(report, name) for name in report.__slots__}
