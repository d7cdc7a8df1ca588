"""`cuvee generate`: one reply, streamed, each member in its own colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import (
    DEFAULT_SERVER,
    BlendOption,
    JsonOption,
    JsonSchemaOption,
    MarksOption,
    RegexOption,
    SeedOption,
    ServerOption,
    SetOption,
    TimeoutOption,
    parse_format,
    parse_numbers,
    parse_span,
    read_prompt,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.v1 import generation_pb2 as pb


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - reads it from stdin.")
    ] = None,
    blend: BlendOption = "",
    server: ServerOption = DEFAULT_SERVER,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as a chat message, by each member's own template.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to draw.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the drawn member's likeliest token.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep this share of probability.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Keep this many tokens; 0 keeps all.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens with this share of the likeliest one's.")
    ] = None,
    seed: SeedOption = None,
    span: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN", help="Who speaks is drawn per token, word, sentence, response, or N."
        ),
    ] = None,
    member: Annotated[str, typer.Option(help="Let this member alone speak.")] = "",
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Replace the weights; repeat it per member."),
    ] = None,
    parameters: SetOption = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text; may be repeated."),
    ] = None,
    regex: RegexOption = None,
    json_schema: JsonSchemaOption = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="List tokens and chances.")] = False,
    marks: MarksOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one reply, each member in its own colour.

    Piped, stdout carries the text alone; the legend goes to stderr.
    """
    text = read_prompt(prompt)
    weights = parse_numbers(weight or [], "--weight")
    numbers = parse_numbers(parameters or [], "--set")
    spoken_span = parse_span(span) if span else None
    from cuvee.v1 import generation_pb2 as pb

    try:
        request = pb.StreamGenerateRequest(
            blend=blend,
            sampling=pb.Sampling(
                temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
            ),
            stopping=pb.Stopping(max_tokens=max_tokens, stop=stop or []),
            output=pb.OutputOptions(logprobs=logprobs),
            overrides=pb.BlendOverrides(
                weights=weights, span=spoken_span, member=member, parameters=numbers
            ),
            format=parse_format(regex, json_schema),
        )
        if chat:
            request.chat.messages.add(role=pb.ROLE_USER, content=text)
        else:
            request.prompt = text
    except ValueError as error:  # a number that the wire has no room for, text that is no UTF-8
        raise typer.BadParameter(str(error)) from None
    _run(request, server, marks=marks, timeout_s=timeout, as_json=as_json)


def _run(
    request: pb.StreamGenerateRequest,
    address: str,
    *,
    marks: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    from rich.console import Console

    from cluster.cli.call import calling, to_mapping
    from cluster.cli.output import print_json
    from cluster.cli.paint import Painter, Voices
    from cluster.cli.reply import print_account, stream

    with calling(address, as_json=as_json) as server:
        if as_json:
            reply = stream(server, request, None, timeout_s=timeout_s)
            print_json(Console(), to_mapping(reply.response))
            return
        blend = server.blend(request.blend, timeout_s)
        voices = Voices(member.name for member in blend.members)
        reply = stream(server, request, Painter(voices, marks=marks), timeout_s=timeout_s)
        console = Console(stderr=True)
        console.line()
        if request.output.logprobs:
            _print_tokens(console, reply.response)
        print_account(console, voices, reply)


def _print_tokens(console: Console, response: pb.GenerateResponse) -> None:
    """One token a line: how likely its member thought it, before temperature."""
    from cluster.cli.output import print_table
    from cluster.cli.tokens import spelled

    rows = [
        (
            spelled(token.bytes),
            token.member,
            f"{token.logprob:.3f}",
        )
        for token in response.tokens
    ]
    print_table(console, ("token", "member", "logprob"), rows, right=("logprob",))
