"""`cuvee bench`: what blending costs here. Imports nothing heavy before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cluster.cli.credentials import shows_credentials

_SVG = ".svg"


@shows_credentials
def bench(
    file: Annotated[
        Path | None, typer.Argument(help="A blend file. Default: tiny models that are here.")
    ] = None,
    blend: Annotated[
        list[str] | None, typer.Option("--blend", "-b", help="Only this one; may be repeated.")
    ] = None,
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="So many at a time; again for more. [1, 16]")
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Requests per second, at random (Poisson); again for more."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each case once in each.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens per reply.")] = 64,
    replies: Annotated[int, typer.Option(min=1, help="Of a single stream, in each round.")] = 4,
    prompt_words: Annotated[int, typer.Option(min=1, help="Words of each prompt.")] = 40,
    first_ms: Annotated[float, typer.Option(min=1, help="A good reply begins within.")] = 1000.0,
    gap_ms: Annotated[
        float, typer.Option(min=1, help="And has no more between tokens, on average.")
    ] = 100.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals.")] = 1,
    clients: Annotated[int, typer.Option(min=1, help="Processes that share the load.")] = 1,
    rivals: Annotated[
        bool, typer.Option("--rivals", help="Beside transformers and ensembles, same models.")
    ] = False,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="Members as plain processes: `cuvee member`.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Load this running cluster; start none."),
    ] = None,
    json_to: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="All figures; in a folder, a dated file."),
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw it.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the tables between its markers.")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure nothing: show the runs whose JSON is there."),
    ] = None,
) -> None:
    """Measure what blending costs here: speed, waits, processors and counts per token."""
    if picture is not None and picture.suffix != _SVG:
        _refuse("--picture", f"got {picture}; expected a file that ends in {_SVG}")
    if history is not None:
        from deployments.bench.history import show_history

        show_history(history, picture)
        return
    if address is not None and (file or rivals or no_ray):
        _refuse("--address", "a cluster that runs is loaded as it is, without FILE or rivals")
    from deployments.bench.figures import Limits
    from deployments.bench.run import Outlet, Wanted, run_bench
    from deployments.bench.settings import Settings

    given = tuple(sorted(set(streams or ())))
    settings = Settings(
        streams=given or (() if rate else (1, 16)),
        rates=tuple(rate or ()),
        num_rounds=rounds,
        num_new_tokens=tokens,
        num_prompt_words=prompt_words,
        num_alone=replies,
        seed=seed,
        limits=Limits(first_ms, gap_ms),
    )
    wanted = Wanted(
        settings,
        file=file,
        blends=blend or [],
        address=address,
        with_ray=not no_ray,
        with_rivals=rivals,
        num_clients=clients,
    )
    run_bench(wanted, Outlet(json_to, picture, markdown))


def _refuse(option: str, words: str) -> NoReturn:
    raise typer.BadParameter(words, param_hint=option)
