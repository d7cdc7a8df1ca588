"""`cuvee`, whole: `cluster.cli`, those that need Ray (`up`, `apply`, `demo`), and `render`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cluster.cli.main import app
from cluster.cli.options import JsonOption, MarksOption
from deployments.bench.command import bench
from deployments.kubernetes.command import render
from deployments.simulation.command import simulate

if TYPE_CHECKING:
    from cluster.errors import CuveeError
    from cluster.spec import ClusterSpec, PlacedSpec

PortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Listen here instead; 0: any free port.")
]


app.add_typer(render, name="render")
app.command()(simulate)
app.command()(bench)


@app.command()
def up(
    file: Annotated[
        Path | None, typer.Argument(help="A blend file. Default: the demo's, with tiny models.")
    ] = None,
    port: PortOption = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="RAY", help="Join this Ray cluster (or `auto`), start none."),
    ] = None,
    num_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs that Ray may use. Default: all it finds.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a blend file from this machine until Ctrl-C."""
    spec = _load(file or demo_file(), port=port, as_json=as_json)
    from deployments.up import serve_until_stopped

    with _reporting(as_json=as_json):
        serve_until_stopped(spec, ray_address=address, num_gpus=num_gpus, as_json=as_json)


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="The blend file, changed.")],
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="RAY", help="The Ray cluster. Default: the one on this machine."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Change the blends of a running cluster; replicas and replies under way go on."""
    spec = _load(file, as_json=as_json)
    from deployments.apply import show_applied

    with _reporting(as_json=as_json):
        show_applied(spec, ray_address=ray_address, as_json=as_json)


@app.command()
def demo(
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "It is a truth",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens a reply.")] = 80,
    keep: Annotated[bool, typer.Option("--keep", help="Serve on until Ctrl-C.")] = False,
    marks: MarksOption = False,
) -> None:
    """Start a cluster of tiny models here, show what a blend is, and stop."""
    spec = _load(demo_file(), port=0)
    from deployments.demo import show

    with _reporting():
        show(spec, prompt=prompt, seed=seed, max_tokens=max_tokens, keep=keep, marks=marks)


def demo_file() -> Path:
    """The blend file that ships with Cuvée."""
    from importlib.resources import files

    return Path(str(files("cluster.models") / "demo.yaml"))


def _load(file: Path, *, port: int | None = None, as_json: bool = False) -> ClusterSpec:
    """A spec whose models are here, on the port wanted; or say what is wrong, with its line."""
    from cluster.errors import CuveeError, SpecError
    from cluster.spec import load_spec

    try:
        spec = load_spec(file)
    except SpecError as error:
        if not as_json:  # its lines begin with the file's name and the line
            typer.echo(error.message, err=True)
            raise typer.Exit(2) from None
        _fail(error, code=2, as_json=True)
    try:
        _build_merges(spec)
        _check_models(spec)
        _check_access(spec)
    except CuveeError as error:
        error.message = f"{file}: {error.field}: {error.message}"
        _fail(error, code=1, as_json=as_json)
    if port is None:
        return spec
    return spec.model_copy(update={"serving": spec.serving.model_copy(update={"port": port})})


def _build_merges(spec: ClusterSpec) -> None:
    """Make what members and rankers are merged from, before any replica asks for it."""
    from cluster.cli.merge import merging
    from cluster.errors import CuveeError
    from cluster.merging.cache import folder_of
    from cluster.spec import MergedSpec

    for kind, placed_by_name in (("members", spec.members), ("rankers", spec.rankers)):
        for name, placed in placed_by_name.items():
            if not isinstance(placed.model, MergedSpec):
                continue
            try:
                with merging(f"merging {name}") as watch:
                    folder_of(placed, download=True, watch=watch)
            except CuveeError as error:
                error.field = f"{kind}.{name}.model.merge"
                raise


def _check_models(spec: ClusterSpec) -> None:
    """Refuse at once what replicas would refuse after a minute."""
    from cluster.errors import CuveeError
    from cluster.gates.file import gate_of
    from cluster.merging.cache import folder_of
    from cluster.models.facts import check_split, read_facts, read_vocabulary
    from cluster.rankers.facts import read_ranker_config

    folders: dict[str, Path] = {}
    for name, member in spec.members.items():
        if _may_be_elsewhere(member):  # its replicas may still download it
            continue
        try:
            folders[name] = folder_of(member, download=False)
            if member.num_shards > 1:
                check_split(read_facts(folders[name]), member.num_shards)
        except CuveeError as error:
            error.field = f"members.{name}.{error.field or 'model'}"
            raise
    for name, ranker in spec.rankers.items():
        if not _may_be_elsewhere(ranker):
            try:
                read_ranker_config(folder_of(ranker, download=False), ranker)
            except CuveeError as error:
                error.field = f"rankers.{name}.model"
                raise
    for name, blend in spec.blends.items():
        try:
            gate_of(spec, blend)
            if blend.needs_one_vocabulary and all(member in folders for member in blend.members):
                found = {m: read_vocabulary(folders[m]).fingerprint for m in blend.members}
                blend.check_vocabularies(name, found)
        except CuveeError as error:
            error.field = f"blends.{name}"
            raise


def _may_be_elsewhere(placed: PlacedSpec) -> bool:
    from cluster.models.reference import ModelKind

    return placed.reference is not None and placed.reference.kind is ModelKind.HUB


def _check_access(spec: ClusterSpec) -> None:
    """Refuse keys and certificates that a router would refuse."""
    from cluster.access.certificates import Certificates
    from cluster.access.keys import read_keys
    from cluster.errors import CuveeError

    if spec.serving.auth is not None:
        try:
            read_keys(spec.serving.auth.keys)
        except CuveeError as error:
            error.field = "serving.auth.keys"
            raise
    if spec.serving.tls is not None:
        Certificates(spec.serving.tls)


@contextmanager
def _reporting(*, as_json: bool = False) -> Iterator[None]:
    """Errors become words and exit codes, SIGTERM the same orderly end as Ctrl-C."""
    from cluster.cli.call import EXIT_INTERRUPTED
    from cluster.errors import CuveeError

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except CuveeError as error:
        _fail(error, code=1, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(error: CuveeError, *, code: int, as_json: bool) -> NoReturn:
    from cluster.cli.call import print_error

    print_error(error, as_json=as_json)
    raise typer.Exit(code)


def main() -> None:
    """The console script."""
    app(prog_name="cuvee")


if __name__ == "__main__":
    main()
