"""Flags that several commands share, and how their values are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cuvee.v1 import generation_pb2 as pb

DEFAULT_SERVER = "127.0.0.1:9000"

ServerOption = Annotated[
    str, typer.Option("--server", metavar="HOST:PORT", envvar="CUVEE_SERVER", help="Where to call.")
]
BlendOption = Annotated[
    str, typer.Option("--blend", "-b", help="The blend to ask. Default: the server's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
MarksOption = Annotated[
    bool, typer.Option("--marks", help="Mark each change of speaker in the text: ⟨k⟩.")
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same text."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=NUMBER", help="Replace a parameter of the method; may be repeated."
    ),
]
RegexOption = Annotated[
    str | None,
    typer.Option("--regex", metavar="REGEX", help="The whole reply matches this expression."),
]
JsonSchemaOption = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE_OR_TEXT",
        help="The reply is JSON that matches this schema; text begins with {.",
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up after.")
]


def read_prompt(prompt: str | None) -> str:
    """The prompt given, or all of stdin for `-` and for none where stdin is not a terminal."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, or - to read it from stdin", param_hint="PROMPT")
    return sys.stdin.read().removesuffix("\n")


def parse_numbers(given: list[str], option: str) -> dict[str, float]:
    """`name=0.7`, several times."""
    numbers: dict[str, float] = {}
    for text in given:
        name, equals, words = text.partition("=")
        try:
            number = float(words)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise typer.BadParameter(
                f"got {text!r}; expected NAME=NUMBER, such as austen=0.7", param_hint=option
            )
        if name in numbers:
            raise typer.BadParameter(f"{name} is given twice", param_hint=option)
        numbers[name] = number
    return numbers


def parse_format(regex: str | None, json_schema: str | None) -> pb.OutputFormat | None:
    """What the reply has to match, if anything; a schema may lie in a file."""
    from cuvee.v1 import generation_pb2 as pb

    if regex is not None and json_schema is not None:
        raise typer.BadParameter("give it or --regex, not both", param_hint="--json-schema")
    if regex is not None:
        return pb.OutputFormat(regex=regex)
    if json_schema is None:
        return None
    if not json_schema.lstrip().startswith("{"):
        try:
            json_schema = Path(json_schema).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise typer.BadParameter(
                f"got {json_schema!r}, which is no text of a schema and no file that can be read: "
                f"{error}",
                param_hint="--json-schema",
            ) from None
    return pb.OutputFormat(json_schema=json_schema)


def parse_span(text: str) -> pb.Span:
    """A number of tokens, or one of the named units."""
    from cuvee.v1 import generation_pb2 as pb

    units = {
        "word": pb.SPAN_UNIT_WORD,
        "sentence": pb.SPAN_UNIT_SENTENCE,
        "response": pb.SPAN_UNIT_RESPONSE,
    }
    if text in units:
        return pb.Span(unit=units[text])
    if text == "token" or (text.isascii() and text.isdigit() and 0 < int(text) < 2**32):
        return pb.Span(num_tokens=1 if text == "token" else int(text))
    raise typer.BadParameter(
        f"got {text!r}; expected token, word, sentence, response, or a number of tokens",
        param_hint="--span",
    )
