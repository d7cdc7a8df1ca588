"""`cuvee status`: how a cluster is, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import DEFAULT_SERVER, JsonOption, ServerOption

if TYPE_CHECKING:
    from rich.text import Text

    from cuvee.v1 import admin_pb2 as pb

_TIMEOUT_S = 15.0
_RIGHT = ("leases", "open", "busy", "working", "waiting", "kv", "weight", "drawn", "tokens")


def status(
    server: ServerOption = DEFAULT_SERVER,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.2, help="Of --watch.")
    ] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show members, replicas, their load, and what was drawn against the weights."""
    from rich.console import Console
    from rich.live import Live

    from cluster.cli.call import calling, to_mapping
    from cluster.cli.output import print_json, print_line
    from cuvee.v1 import admin_pb2 as pb

    console = Console()
    with calling(server, as_json=as_json) as called:

        def ask() -> pb.GetStatusResponse:
            return called.admin.GetStatus(pb.GetStatusRequest(), timeout=_TIMEOUT_S)

        if as_json or not (watch and console.is_terminal):
            while True:
                if as_json:
                    print_json(console, to_mapping(ask()))
                else:
                    for line in lines_of(ask()):
                        print_line(console, line)
                if not watch:
                    return
                time.sleep(interval_s)
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(_page(ask(), server), refresh=True)
                time.sleep(interval_s)


def lines_of(response: pb.GetStatusResponse) -> Iterator[Text]:
    """The whole state, a line at a time."""
    from rich.text import Text

    from cluster.cli.output import table_lines

    router = response.router
    yield Text.assemble(
        ("router", "bold"),
        f"  up {_duration(router.uptime_s)}, {router.running} of {router.max_running} generations "
        f"under way, {router.waiting} waiting",
    )
    yield Text()
    rows = [row for member in response.members for row in _replica_rows(member)]
    columns = ("member", "replica", "leases", "open", "busy", "working", "waiting", "kv")
    yield from table_lines(columns, rows, right=_RIGHT)
    for member in response.members:
        if member.error:
            yield Text(f"{member.member}: {member.error}", "yellow")
    yield Text()
    shares = [row for blend in response.blends for row in _share_rows(blend)]
    yield from table_lines(
        ("blend", "member", "weight", "drawn", "tokens", ""), shares, right=_RIGHT
    )
    yield Text()
    for blend in response.blends:
        yield _blend_line(blend)


def _replica_rows(member: pb.MemberStatus) -> Iterator[tuple[str, ...]]:
    if not member.replicas:
        yield (member.member, "none answers" if member.error else "none runs", *[""] * 6)
    for number, replica in enumerate(member.replicas):
        yield (
            "" if number else member.member,
            replica.address,
            str(replica.leases),
            str(replica.sequences),
            f"{replica.busy:.0%}",
            f"{replica.working:.1f}",
            f"{replica.waiting:.1f}",
            f"{replica.kv_fill:.0%}",
        )


def _share_rows(blend: pb.BlendStatus) -> Iterator[tuple[str, ...]]:
    from cluster.cli.paint import bar

    for number, share in enumerate(blend.shares):
        yield (
            "" if number else blend.blend,
            share.member,
            f"{share.weight:.1%}" if share.weight else "–",
            f"{share.drawn_share:.1%}",
            str(share.drawn_tokens),
            bar(share.drawn_share),
        )


def _blend_line(blend: pb.BlendStatus) -> Text:
    from rich.text import Text

    if not blend.revision:
        return Text.assemble((blend.blend, "bold"), ("  waits for its models", "yellow"))
    replies = "reply" if blend.replies == 1 else "replies"
    line = Text.assemble((blend.blend, "bold"), f"  {blend.replies} {replies}")
    if blend.takeovers:
        line.append(f", {blend.takeovers} taken over by other replicas")
    if blend.degraded_replies:
        line.append(f", {blend.degraded_replies} without a member", "yellow")
    return line.append(f"  revision {blend.revision}", "dim")


def _page(response: pb.GetStatusResponse, server: str) -> Text:
    from rich.text import Text

    head = Text(f"{server}  {time.strftime('%H:%M:%S')}  Ctrl-C ends this\n", "dim")
    return Text("\n").join([head, *lines_of(response)])


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
