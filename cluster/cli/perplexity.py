"""`cuvee eval perplexity`: how well members and blends predict given texts, side by side.

The unit is bits per byte, so that members with different tokenizers compare. A text is cut into
passages; each is measured given the characters before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import DEFAULT_SERVER, JsonOption, ServerOption
from cluster.cli.plot import FORMATS, Voice, words_of, write_plot
from cluster.errors import InvalidRequest
from cluster.models.passages import Passage, cut_passages

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.cli.call import Server
    from cuvee.v1 import generation_pb2 as pb

_NUM_AT_ONCE = 8


@dataclass(slots=True)
class Tally:
    """What one member or blend made of all passages."""

    nats: list[float] = field(default_factory=list)  # by passage
    num_bytes: list[int] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> float:
        """Lower is better; inf if something was impossible."""
        return -math.fsum(self.nats) / math.log(2) / sum(self.num_bytes)

    def of(self, begin: int, end: int) -> Tally:
        """The part of some passages."""
        return Tally(self.nats[begin:end], self.num_bytes[begin:end])


def perplexity(
    files: Annotated[list[Path], typer.Argument(help="Text files, read as UTF-8.")],
    blend: Annotated[
        list[str] | None, typer.Option("--blend", "-b", help="Repeat for more. Default: all.")
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, help="Characters given before each passage.")
    ] = 200,
    passage: Annotated[int, typer.Option(min=1, help="Characters of a passage.")] = 400,
    limit: Annotated[int, typer.Option(min=1, help="Most passages per file.")] = 50,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it too, as FILE.html or FILE.svg.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Bits per byte of texts under every member and blend of a server; lower is better."""
    from rich.console import Console

    from cluster.cli.call import calling
    from cluster.cli.output import print_json
    from cuvee.v1 import blend_pb2

    if plot is not None and plot.suffix not in FORMATS:
        raise typer.BadParameter(
            f"got {plot}; expected a name that ends in {' or '.join(FORMATS)}", param_hint="--plot"
        )
    by_file = [cut(file, context, passage, limit) for file in files]
    passages = [p for of_file in by_file for p in of_file]
    with calling(server, as_json=as_json) as called:
        listed = called.blends.ListBlends(blend_pb2.ListBlendsRequest(), timeout=10)
        names = blend or [served.name for served in listed.blends]
        tallies = _measure(called, names, passages)
    rows = sorted(tallies.items(), key=lambda item: item[1].bits_per_byte)
    if plot is not None:
        write_plot(plot, _panels(files, [len(of_file) for of_file in by_file], rows))
    if as_json:
        print_json(Console(), _as_mapping(files, passages, rows))
    else:
        _print(Console(), passages, rows)


def cut(file: Path, context: int, passage: int, limit: int) -> list[Passage]:
    """As `cut_passages`; what is wrong with a file is wrong with the command."""
    try:
        return list(cut_passages(file, context, passage, limit))
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint="FILES") from None


def _measure(
    called: Server, names: Sequence[str], passages: Sequence[Passage]
) -> dict[tuple[str, str], Tally]:
    """By (kind, name); a member that several blends share is measured once."""
    import sys

    from rich.console import Console
    from rich.progress import track

    from cuvee.v1 import generation_pb2 as pb

    tallies: dict[tuple[str, str], Tally] = {}

    def score(job: tuple[str, Passage]) -> pb.ScoreResponse:
        name, passage = job
        request = pb.ScoreRequest(blend=name, prompt=passage.before, continuation=passage.text)
        return called.generation.Score(request)

    jobs = [(name, passage) for name in names for passage in passages]
    console = Console(file=sys.stderr)
    with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
        answers = track(
            pool.map(score, jobs),
            "measuring",
            total=len(jobs),
            console=console,
            disable=not console.is_terminal,
        )
        first_of: dict[str, str] = {}
        for (name, _), answer in zip(jobs, answers, strict=True):
            if answer.HasField("logprob"):
                _add(tallies, ("blend", name), answer.logprob, answer.num_bytes)
            for member in answer.members:
                if first_of.setdefault(member.member, name) == name:
                    _add(tallies, ("member", member.member), member.logprob, answer.num_bytes)
    return tallies


def _panels(
    files: Sequence[Path],
    num_passages: Sequence[int],
    rows: Sequence[tuple[tuple[str, str], Tally]],
) -> dict[str, dict[Voice, float]]:
    """Bits per byte of every row, by file, and of all files where there are several."""
    panels = {}
    if len(files) > 1:
        panels["all files"] = {Voice(*key): tally.bits_per_byte for key, tally in rows}
    borders = pairwise([0, *accumulate(num_passages)])
    for file, (begin, end) in zip(files, borders, strict=True):
        parts = ((key, tally.of(begin, end)) for key, tally in rows)
        panels[str(file)] = {Voice(*key): part.bits_per_byte for key, part in parts}
    return panels


def _add(
    tallies: dict[tuple[str, str], Tally], key: tuple[str, str], nats: float, num_bytes: int
) -> None:
    tally = tallies.setdefault(key, Tally())
    tally.nats.append(nats)
    tally.num_bytes.append(num_bytes)


def _print(
    console: Console, passages: Sequence[Passage], rows: Sequence[tuple[tuple[str, str], Tally]]
) -> None:
    from rich.text import Text

    from cluster.cli.output import print_line
    from cluster.cli.paint import bar

    finite = [tally.bits_per_byte for _, tally in rows if math.isfinite(tally.bits_per_byte)]
    worst = max(finite, default=1.0)
    width = max((len(name) for (_, name), _ in rows), default=0)
    for (kind, name), tally in rows:
        bits = tally.bits_per_byte
        line = Text.assemble((f"{name:<{width}}", "bold"), f"  {kind:<6}  ", words_of(bits))
        if math.isfinite(bits):
            line.append("  ").append(bar(bits / worst), "cyan")
        print_line(console, line)
    num_bytes = sum(passage.num_bytes for passage in passages)
    print_line(console)
    print_line(
        console,
        f"bits per byte over {len(passages)} passages, {num_bytes:,} bytes; lower is better",
    )


def _as_mapping(
    files: Sequence[Path],
    passages: Sequence[Passage],
    rows: Sequence[tuple[tuple[str, str], Tally]],
) -> dict[str, object]:
    return {
        "ok": True,
        "files": [str(file) for file in files],
        "num_passages": len(passages),
        "num_bytes": sum(passage.num_bytes for passage in passages),
        "bits_per_byte": [
            {
                "name": name,
                "kind": kind,
                "bits_per_byte": bits if math.isfinite(bits := tally.bits_per_byte) else None,
                "by_passage": [
                    -nats / math.log(2) / size if math.isfinite(nats) else None
                    for nats, size in zip(tally.nats, tally.num_bytes, strict=True)
                ],
            }
            for (kind, name), tally in rows
        ],
    }
