"""`cuvee keys new | list | revoke`: who may call a cluster that asks for keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.options import JsonOption

if TYPE_CHECKING:
    from cluster.access.keys import KeyEntry

FileOption = Annotated[
    Path,
    typer.Option("--file", metavar="FILE", envvar="CUVEE_KEYS", help="As serving.auth.keys names."),
]
_DEFAULT_FILE = Path("keys.yaml")
_SCOPES = ("generate", "admin", "metrics")
_HOURS = {"h": 1, "d": 24, "w": 24 * 7}

keys = typer.Typer(help="API keys.", no_args_is_help=True, rich_markup_mode=None)


@keys.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Its public id: a-z, 0-9 and hyphens.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(_SCOPES)}; may be repeated. Default: generate."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="After 12h, 90d, 4w. Default: never.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Most generations at one time, per router.")
    ] = None,
    cost_per_minute: Annotated[
        float | None, typer.Option(help="Most of what its members' tokens cost, a minute.")
    ] = None,
    weight: Annotated[float, typer.Option(help="Its share of a full router.")] = 1.0,
    note: Annotated[str, typer.Option(help="For whom it is.")] = "",
    file: FileOption = _DEFAULT_FILE,
    as_json: JsonOption = False,
) -> None:
    """Make a key, write its hash to the file, and print the key: this once and never again."""
    from rich.console import Console

    from cluster.access.keys import LimitsEntry, add_key, new_key
    from cluster.cli.call import say
    from cluster.cli.output import print_json, print_line

    scopes = tuple(dict.fromkeys(scope or ["generate"]))
    if unknown := [given for given in scopes if given not in _SCOPES]:
        raise typer.BadParameter(
            f"got {unknown[0]!r}; expected one of {', '.join(_SCOPES)}", param_hint="--scope"
        )
    for flag, number in (("--cost-per-minute", cost_per_minute), ("--weight", weight)):
        if number is not None and not 0 < number < float("inf"):
            raise typer.BadParameter(f"got {number:g}; expected more than 0", param_hint=flag)
    limits = LimitsEntry(
        max_concurrent=max_concurrent, cost_per_minute=cost_per_minute, weight=weight
    )
    made = new_key(name, scopes, limits, lifetime=_lifetime(expires), note=note)
    with _reporting(as_json=as_json):
        add_key(file, name, made.entry)
    if as_json:
        print_json(Console(), {"ok": True, "key": made.text, **_as_mapping(name, made.entry)})
        return
    print_line(Console(), made.text)
    say(f"only its hash is in {file}: keep it, it is shown this once")


@keys.command("list")
def list_keys(file: FileOption = _DEFAULT_FILE, as_json: JsonOption = False) -> None:
    """List the keys of a file: never their secrets, which it does not have."""
    from rich.console import Console

    from cluster.access.keys import read_keys
    from cluster.cli.output import plain_number, print_json, print_table

    with _reporting(as_json=as_json):
        found = read_keys(file)
    if as_json:
        listed = [_as_mapping(key_id, entry) for key_id, entry in found.items()]
        print_json(Console(), {"ok": True, "keys": listed})
        return
    rows = [
        (
            key_id,
            " ".join(entry.scopes),
            f"{entry.created:%Y-%m-%d}",
            _expiry_words(entry),
            plain_number(entry.limits.max_concurrent or 0),
            plain_number(entry.limits.cost_per_minute or 0),
            f"{entry.limits.weight:g}",
            entry.note,
        )
        for key_id, entry in found.items()
    ]
    columns = ("id", "scopes", "created", "expires", "at once", "cost/min", "weight", "note")
    print_table(Console(), columns, rows, right=("at once", "cost/min", "weight"))


@keys.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The key's id.")],
    file: FileOption = _DEFAULT_FILE,
    as_json: JsonOption = False,
) -> None:
    """Take a key out of the file; routers follow within a second, replies under way go on."""
    from rich.console import Console

    from cluster.access.keys import remove_key
    from cluster.cli.call import say
    from cluster.cli.output import print_json

    with _reporting(as_json=as_json):
        remove_key(file, name)
    if as_json:
        print_json(Console(), {"ok": True, "id": name})
    else:
        say(f"{name} is revoked")


def _lifetime(text: str | None) -> timedelta | None:
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    if unit in _HOURS and number.isascii() and number.isdigit() and 0 < int(number) < 100_000:
        return timedelta(hours=int(number) * _HOURS[unit])
    raise typer.BadParameter(
        f"got {text!r}; expected a number of hours, days or weeks, such as 12h, 90d or 4w",
        param_hint="--expires",
    )


@contextmanager
def _reporting(*, as_json: bool) -> Iterator[None]:
    """Errors become words and an exit code."""
    from cluster.cli.call import EXIT_REFUSED, print_error
    from cluster.errors import CuveeError

    try:
        yield
    except CuveeError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(EXIT_REFUSED) from None


def _expiry_words(entry: KeyEntry) -> str:
    if entry.expires is None:
        return "never"
    is_over = entry.expires <= datetime.now(UTC)
    return f"{entry.expires:%Y-%m-%d %H:%M}{' (over)' if is_over else ''}"


def _as_mapping(key_id: str, entry: KeyEntry) -> dict[str, Any]:
    shown = entry.model_dump(mode="json", exclude={"salt", "hash"})
    return {"id": key_id, **shown}
