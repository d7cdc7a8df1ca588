"""The app as a whole: its commands, and how little it costs to ask it for help."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import deployments.cli  # noqa: F401  # adds `up` and `demo`
from cluster import __version__
from cluster.cli.main import app

HEAVY = ("grpc", "google.protobuf", "ray", "torch", "transformers", "cluster.spec")


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"cuvee {__version__}\n")


def test_all_commands_are_there() -> None:
    listed = CliRunner().invoke(app, ["--help"]).stdout
    for command in (
        "up",
        "apply",
        "demo",
        "bench",
        "member",
        "router",
        "generate",
        "chat",
        "check",
    ):
        assert f"\n  {command} " in listed


@pytest.mark.parametrize("command", ["generate", "up", "apply", "bench", "member"])
def test_help_imports_nothing_heavy(command: str) -> None:
    program = f"""
import sys
from deployments.cli import app
try:
    app([{command!r}, "--help"])
except SystemExit as end:
    assert end.code == 0
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Usage: " in result.stdout
    assert result.stderr.strip() == "[]"


def test_check_and_models_are_wired_in(tmp_path: object) -> None:
    assert CliRunner().invoke(app, ["check", f"{tmp_path}/none.yaml"]).exit_code == 1
    assert "MODEL" in CliRunner().invoke(app, ["models", "list"]).stdout
