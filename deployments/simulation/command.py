"""`cuvee simulate`: what the autoscaling loop makes of a load, and what to write for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import JsonOption

if TYPE_CHECKING:
    from deployments.simulation.advice import Advice


def simulate(
    file: Annotated[Path, typer.Argument(help="The blend file.")],
    streams: Annotated[str, typer.Option(metavar="FEW:MANY", help="Streams under way.")],
    load_s: Annotated[
        int, typer.Option("--load", min=1, help="Seconds until a replica has its model.")
    ] = 60,
    pod_s: Annotated[int, typer.Option("--pod", min=1, help="Seconds for a pod, on a node.")] = 30,
    node_s: Annotated[int, typer.Option("--node", min=0, help="Seconds for a node.")] = 150,
    spare: Annotated[int, typer.Option(min=0, help="Pods with room on nodes that are there.")] = 0,
    rise_s: Annotated[int, typer.Option("--rise", min=1, help="Seconds from few to many.")] = 60,
    hold_s: Annotated[int, typer.Option("--hold", min=1, help="Seconds at each.")] = 900,
    reply_s: Annotated[
        float, typer.Option("--reply", min=1, help="Seconds of a reply at full speed.")
    ] = 15.0,
    slowness: Annotated[
        float, typer.Option(min=1, help="How much slower 95 % of stream time may be.")
    ] = 1.5,
    blend: Annotated[str | None, typer.Option("--blend", "-b", help="Default: the file's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Propose autoscaling for a load and start-up times, by simulating the whole loop."""
    from rich.console import Console

    from cluster.cli.call import print_error
    from cluster.cli.output import print_json
    from cluster.errors import CuveeError
    from cluster.spec import load_spec
    from deployments.simulation.advice import advise, shares_of
    from deployments.simulation.loop import Delays, Load

    few, many = _range(streams)
    try:
        spec = load_spec(file)
        name = blend or spec.default_blend
        if name not in spec.blends:
            known = ", ".join(spec.blends)
            raise typer.BadParameter(f"got {name}; expected one of {known}", param_hint="--blend")
        load = Load(few, many, rise_s=rise_s, hold_s=hold_s, reply_s=reply_s)
        delays = Delays(load_s, pod_s, node_s, spare)
        found = list(advise(spec.members, shares_of(spec.blends[name]), load, delays, slowness))
    except CuveeError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(2) from None
    if as_json:
        print_json(Console(), {"ok": True, "blend": name, "members": [asdict(a) for a in found]})
    else:
        _print(found)


def _range(given: str) -> tuple[float, float]:
    few, _, many = given.partition(":")
    try:
        bounds = float(few), float(many)
    except ValueError:
        bounds = (1.0, 0.0)
    if not 0 <= bounds[0] <= bounds[1] or not bounds[1]:
        raise typer.BadParameter(f"got {given!r}; expected such as 20:200", param_hint="--streams")
    return bounds


def _print(found: list[Advice]) -> None:
    for advice in found:
        settings = advice.settings
        typer.echo(
            f"# {advice.member}: works for {advice.share:.0%} of streams; 95 % of their time at "
            f"most {advice.slowness:.2f} times slower{'' if advice.is_enough else ', NOT ENOUGH'}; "
            f"{advice.mean_pods:.1f} pods on average, not {advice.most_pods}; "
            f"one more replica after {advice.reaction_s:.0f} s"
        )
        typer.echo(
            f"{advice.member}: {{autoscaling: {{min_replicas: {settings.min_replicas}, "
            f"max_replicas: {settings.max_replicas}, target_leases: {settings.target_leases:g}, "
            f"window_s: {settings.window_s}, upscale_delay_s: {settings.upscale_delay_s}, "
            f"downscale_delay_s: {settings.downscale_delay_s}}}}}"
        )
    idle_s = max(advice.settings.node_idle_s for advice in found)
    typer.echo(f"# cuvee render k8s FILE --node-idle-s {idle_s}")
