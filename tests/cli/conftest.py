"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.cli.paint import Painter
from cluster.cli.runs import Run
from tests.cli.scripted_server import Script, make_pieces, serving

Cuvee = Callable[..., Any]


@pytest.fixture
def script() -> Iterator[Script]:
    """A server that answers `Hi there` by ann and bob, unless a test changes its script."""
    spoken = (("ann", b"Hi"), ("bob", b" th"), ("bob", b"ere"))
    with serving(Script(pieces=make_pieces(*spoken))) as script:
        yield script


@pytest.fixture
def cuvee(script: Script, monkeypatch: pytest.MonkeyPatch) -> Cuvee:
    """Run a command against the scripted server, which hears when a piece has been painted."""
    paint = Painter.paint

    def paint_and_tell(painter: Painter, runs: Iterable[Run]) -> None:
        paint(painter, runs)
        script.painted.release()

    monkeypatch.setattr(Painter, "paint", paint_and_tell)

    def run(*arguments: str, stdin: str | None = None) -> Any:
        environment = {"CUVEE_SERVER": script.address, "NO_COLOR": None, "COLUMNS": "200"}
        return CliRunner().invoke(app, list(arguments), input=stdin, env=environment)

    return run
