"""`cuvee demo`: what a blend is, seen in under a minute without a model to download."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from cluster.cli.call import Server
from cluster.cli.output import print_line
from cluster.cli.paint import Painter, Voices
from cluster.cli.reply import print_account, stream
from cluster.spec import ClusterSpec
from cuvee.v1 import generation_pb2 as pb
from deployments.local import LocalCluster
from deployments.up import call_lines, started, wait_for_stop

_TOKENS, _REPLIES = "demo", "demo-replies"


def show(
    spec: ClusterSpec, *, prompt: str, seed: int, max_tokens: int, keep: bool, marks: bool
) -> None:
    """The same prompt twice: each token drawn anew from the members, then a reply by one."""
    if not keep:
        spec = only_blends(spec, (_TOKENS, _REPLIES))  # what it does not show need not load
    console = Console(stderr=True)
    print_line(console, "Starting a cluster of tiny models on this machine.")
    with started(spec, drain=keep) as (cluster, start_s):
        print_line(console, Text(f"ready in {start_s:.0f} s\n", "dim"))
        for name in (_TOKENS, _REPLIES):
            request = pb.StreamGenerateRequest(
                blend=name,
                prompt=prompt,
                sampling=pb.Sampling(seed=seed),
                stopping=pb.Stopping(max_tokens=max_tokens),
            )
            _show_one(cluster, request, marks=marks)
        if keep:
            print_line(console, f"Serving on {cluster.address} until Ctrl-C. Elsewhere:\n")
            for line in call_lines(cluster):
                print_line(console, f"  {line}")
            wait_for_stop()
    if not keep:
        print_line(console, "Stopped. `cuvee up` serves them for as long as you like.")


def only_blends(spec: ClusterSpec, names: tuple[str, ...]) -> ClusterSpec:
    """The spec without other blends, and without the members that only those use."""
    mapping = spec.to_mapping()
    mapping["blends"] = {name: mapping["blends"][name] for name in names}
    if mapping["serving"].get("default_blend") not in names:
        mapping["serving"]["default_blend"] = names[0]
    used = {member for blend in mapping["blends"].values() for member in blend["members"]}
    mapping["members"] = {name: m for name, m in mapping["members"].items() if name in used}
    return ClusterSpec.model_validate(mapping)


def _show_one(cluster: LocalCluster, request: pb.StreamGenerateRequest, *, marks: bool) -> None:
    blend = cluster.spec.blends[request.blend]
    voices = Voices(blend.members)
    console = Console(stderr=True)
    print_line(console, Text.assemble((request.blend, "bold"), f"  {blend.description}"))
    painter = Painter(voices, marks=marks)
    painter.lead(request.prompt)
    with Server(cluster.address) as server:
        reply = stream(server, request, painter)
    print_line(console)
    print_account(console, voices, reply)
    print_line(console)
