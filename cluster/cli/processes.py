"""`cuvee member` and `cuvee router`: a cluster of plain processes, where there is no Ray."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.options import JsonOption

if TYPE_CHECKING:
    from cluster.spec import ClusterSpec

KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        envvar="CUVEE_MEMBER_KEY_FILE",
        help="A secret that members and routers share; needed off this machine.",
    ),
]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Listen on this port; 0: any free one.")
]


def member(
    file: Annotated[Path, typer.Argument(help="A blend file.")],
    name: Annotated[str, typer.Argument(help="The member of it to run.")],
    host: Annotated[str, typer.Option(help="The IP address to listen at.")] = "127.0.0.1",
    port: PortOption = 0,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one replica of a member here, without Ray, until Ctrl-C."""

    async def serve() -> None:
        from cluster.errors import NotFound
        from cluster.members.process import running_member

        spec = _spec(file)
        if name not in spec.members:
            words = f"got {name!r}; expected a member of {file}: {', '.join(spec.members)}"
            raise NotFound("UNKNOWN_MEMBER", words, field="name")
        running = running_member(name, spec.members[name], host=host, port=port, key=_key(key_file))
        async with running as process:
            _tell({"member": name}, process.address, as_json=as_json)
            await process.watch()

    _run(serve(), as_json=as_json)


def router(
    file: Annotated[Path, typer.Argument(help="The blend file of the members.")],
    members: Annotated[
        list[str],
        typer.Option(
            "--member",
            metavar="NAME=HOST:PORT",
            help="Where a replica is, as `cuvee member` says; again for each.",
        ),
    ],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Listen here instead; 0: any free port.")
    ] = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a blend file over members that run as `cuvee member`, without Ray, until Ctrl-C."""

    async def serve() -> None:
        import asyncio

        from cluster.access.hosts import address_of
        from cluster.members.remote import Place
        from cluster.router.process import running_router

        spec = _spec(file)
        if port is not None:
            spec = spec.model_copy(
                update={"serving": spec.serving.model_copy(update={"port": port})}
            )
        places: dict[str, list[Place]] = {}
        for given in members:
            name, equals, address = given.partition("=")
            if not (name and equals and address.rpartition(":")[2].isdigit()):
                words = f"got {given!r}; expected NAME=HOST:PORT, such as austen=127.0.0.1:4001"
                raise typer.BadParameter(words, param_hint="--member")
            places.setdefault(name, []).append(Place(address))
        async with running_router(spec, places, _key(key_file)) as process:
            await process.ready()
            told = {"blends": list(spec.blends)}
            _tell(told, address_of(spec.serving.host, process.edge.port), as_json=as_json)
            await asyncio.Event().wait()

    _run(serve(), as_json=as_json)


def _spec(file: Path) -> ClusterSpec:
    from cluster.spec import load_spec

    return load_spec(file)


def _key(file: Path | None) -> bytes:
    """The secret in a file, without the line's end; no file, no secret."""
    from cluster.members.granting import MIN_KEY_BYTES

    if file is None:
        return b""
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--key-file") from None
    if len(key) < MIN_KEY_BYTES:
        words = f"{file} has {len(key)} bytes; expected {MIN_KEY_BYTES} or more, all random"
        raise typer.BadParameter(words, param_hint="--key-file")
    return key


def _tell(what: dict[str, Any], address: str, *, as_json: bool) -> None:
    """Say that it is ready, and where; for scripts at once, also into a pipe."""
    from rich.console import Console

    from cluster.cli.output import print_json, print_line

    if as_json:
        print_json(Console(), {"ok": True, "address": address, **what})
    else:
        words = "; ".join(f"{name} {value}" for name, value in what.items())
        print_line(Console(), f"{words} at {address}; Ctrl-C stops it")
    sys.stdout.flush()


def _run(serving: Coroutine[Any, Any, None], *, as_json: bool) -> None:
    """Until it ends; Ctrl-C and SIGTERM are an orderly end, refusals become words."""
    import asyncio
    import signal

    from cluster.cli.call import EXIT_INTERRUPTED, print_error
    from cluster.errors import CuveeError

    async def until_stopped() -> None:
        task = asyncio.ensure_future(serving)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await task

    try:
        asyncio.run(until_stopped())
    except CuveeError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(EXIT_INTERRUPTED) from None
