"""`cuvee blends`: what a server serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import DEFAULT_SERVER, JsonOption, ServerOption

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.v1 import blend_pb2

_TIMEOUT_S = 10.0


def blends(
    name: Annotated[str, typer.Argument(help="One blend, in detail. Default: list all.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """List the blends of a server, or describe one."""
    from rich.console import Console

    from cluster.cli.call import calling, to_mapping
    from cluster.cli.output import print_json
    from cuvee.v1 import blend_pb2

    console = Console()
    with calling(server, as_json=as_json) as called:
        if name:
            blend = called.blend(name, _TIMEOUT_S)
            if as_json:
                print_json(console, to_mapping(blend))
            else:
                _print_one(console, blend)
            return
        listed = called.blends.ListBlends(blend_pb2.ListBlendsRequest(), timeout=_TIMEOUT_S)
        if as_json:
            print_json(console, to_mapping(listed))
        else:
            _print_all(console, listed)


def _print_all(console: Console, listed: blend_pb2.ListBlendsResponse) -> None:
    from cluster.cli.output import print_line, print_table

    if not listed.blends:
        print_line(console, "No blend is ready yet; members may still be loading.")
        return
    rows = [
        (
            blend.name + (" (default)" if blend.name == listed.default_blend else ""),
            blend.method,
            rule_words(blend),
            " ".join(f"{m.name}={m.role or format(m.weight, '.2g')}" for m in blend.members),
            blend.description,
        )
        for blend in listed.blends
    ]
    print_table(console, ("blend", "method", "rule", "members", "description"), rows)


def _print_one(console: Console, blend: blend_pb2.Blend) -> None:
    from rich.text import Text

    from cluster.cli.output import print_line, print_table
    from cluster.cli.paint import Voices, bar
    from cuvee.v1 import blend_pb2

    print_line(
        console,
        Text.assemble((blend.name, "bold"), f"  {blend.method}, {rule_words(blend)}  ")
        + Text(f"revision {blend.revision}", "dim"),
    )
    if blend.description:
        print_line(console, blend.description)
    print_line(console)
    voices = Voices(member.name for member in blend.members)
    width = max(len(member.name) for member in blend.members)
    for member in blend.members:
        style = voices.style(member.name)
        line = Text.assemble(f"  {voices.tag(member.name):<4} ", (f"{member.name:<{width}}", style))
        if member.role:
            line.append(f"  {member.role}")
        else:
            line.append("  ").append(bar(member.weight), style).append(f" {member.weight:>6.1%}")
        print_line(console, line)
    print_line(console)
    rows = [
        (
            member.name,
            member.model,
            f"{member.max_context:,}",
            member.vocabulary[:12],
            "yes" if member.has_chat_template else "no",
        )
        for member in blend.members
    ]
    columns = ("member", "model", "context", "vocabulary", "chat")
    print_table(console, columns, rows, right=("context",))
    if blend.exchange_kind == blend_pb2.EXCHANGE_KIND_TOKEN_IDS:
        print_line(console, "exchange  token ids: one vocabulary, exact")
    elif blend.exchange_kind == blend_pb2.EXCHANGE_KIND_TEXT:
        print_line(console, "exchange  text: vocabularies differ")
    elif blend.exchange_kind == blend_pb2.EXCHANGE_KIND_BYTES:
        print_line(console, "exchange  distributions over bytes: each byte is drawn by all")
    sampling = ", ".join(
        f"{field.name} {value:g}" for field, value in blend.default_sampling.ListFields()
    )
    print_line(console, f"sampling  {sampling or 'temperature 1'}")
    print_line(console, f"limit     {blend.max_tokens:,} tokens a reply")


def rule_words(blend: blend_pb2.Blend) -> str:
    """The rule and its parameters, or the span of a mixture: span token, span 4 tokens, …"""
    if blend.method == "mixture":
        return f"span {span_words(blend)}"
    from cuvee.v1 import blend_pb2

    unit = "by bytes" if blend.exchange_kind == blend_pb2.EXCHANGE_KIND_BYTES else ""
    span = f"span {span_words(blend)}" if blend.method == "route" else ""
    numbers = (f"{name} {value:g}" for name, value in sorted(blend.parameters.items()))
    return ", ".join(filter(None, (blend.rule, span, unit, *numbers)))


def span_words(blend: blend_pb2.Blend) -> str:
    """token, 4 tokens, word, …"""
    from cuvee.v1 import generation_pb2 as pb

    if blend.span.WhichOneof("kind") == "num_tokens":
        num = blend.span.num_tokens
        return "token" if num == 1 else f"{num} tokens"
    return pb.SpanUnit.Name(blend.span.unit).removeprefix("SPAN_UNIT_").lower()
