"""`cuvee explain`: a reply token by token: who drew it, how likely, and what else there was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import (
    DEFAULT_SERVER,
    BlendOption,
    JsonOption,
    JsonSchemaOption,
    RegexOption,
    SeedOption,
    ServerOption,
    SetOption,
    parse_format,
    parse_numbers,
    read_prompt,
)
from cluster.cli.tokens import chance, shares_of, spelled, weights_of

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.cli.paint import Voices
    from cuvee.v1 import generation_pb2 as pb


def explain(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - reads it from stdin.")
    ] = None,
    blend: BlendOption = "",
    server: ServerOption = DEFAULT_SERVER,
    chat: Annotated[bool, typer.Option("--chat", help="Ask as a chat message.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to draw.")] = 40,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    seed: SeedOption = None,
    candidates: Annotated[
        int, typer.Option(min=1, max=20, help="How many likeliest tokens to show.")
    ] = 3,
    parameters: SetOption = None,
    regex: RegexOption = None,
    json_schema: JsonSchemaOption = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a reply token by token: members, shares, chances and candidates."""
    text = read_prompt(prompt)
    numbers = parse_numbers(parameters or [], "--set")
    from rich.console import Console

    from cluster.cli.call import calling, to_mapping
    from cluster.cli.output import print_json
    from cluster.cli.page import make_page
    from cluster.cli.paint import Voices
    from cluster.cli.reply import print_account, stream
    from cuvee.v1 import generation_pb2 as pb

    request = pb.StreamGenerateRequest(
        blend=blend,
        sampling=pb.Sampling(temperature=temperature, seed=seed),
        stopping=pb.Stopping(max_tokens=max_tokens),
        output=pb.OutputOptions(logprobs=True, num_top_candidates=candidates),
        overrides=pb.BlendOverrides(parameters=numbers),
        format=parse_format(regex, json_schema),
    )
    if chat:
        request.chat.messages.add(role=pb.ROLE_USER, content=text)
    else:
        request.prompt = text
    with calling(server, as_json=as_json) as called:
        described = called.blend(blend)
        reply = stream(called, request, None)
    voices = Voices(member.name for member in described.members)
    if html is not None:
        html.write_text(make_page(described, text, reply.response, voices), encoding="utf-8")
    if as_json:
        print_json(Console(), to_mapping(reply.response))
        return
    _print(Console(), voices, reply.response)
    print_account(Console(stderr=True), voices, reply)


def _print(console: Console, voices: Voices, response: pb.GenerateResponse) -> None:
    """A line per token; marks beside colours."""
    from rich.text import Text

    from cluster.cli.output import print_line

    shown = [spelled(token.bytes) for token in response.tokens]
    width = max(map(len, shown), default=0)
    for token, words in zip(response.tokens, shown, strict=True):
        line = Text(f"{token.position:>4}  ")
        line.append(f"{words:<{width}}", voices.style(token.member))
        line.append(f"  {chance(token.logprob):>6}  ", "bold")
        for member, share in shares_of(token):
            line.append(f"{voices.tag(member)}{share:.0%} ", voices.style(member))
        for place, (member, weight) in enumerate(weights_of(token)):
            line.append("" if place else "of ")
            line.append(f"{voices.tag(member)}{weight:.0%} ", voices.style(member))
        others = (f"{spelled(c.bytes)} {chance(c.logprob)}" for c in token.top_candidates)
        line.append("  " + "  ".join(others), "dim")
        if token.truncation_bound > 0:
            line.append(f"  ±{token.truncation_bound:.1%}", "dim")
        print_line(console, line)
