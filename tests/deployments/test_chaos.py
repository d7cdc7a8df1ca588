"""Faults at all levels under load, by `python -m benchmarks.chaos`: a short run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_no_stream_differs_from_its_undisturbed_twin_and_nothing_is_left(tmp_path: Path) -> None:
    """A short run; three minutes under fifty streams, or an hour, are the command's."""
    told = tmp_path / "verdict.json"
    command = [sys.executable, "-m", "benchmarks.chaos", "--seed", "35", "--seconds", "25"]
    done = subprocess.run(
        [*command, "--streams", "12", "--json", str(told)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.exists(), done.stderr[-4000:]
    verdict = json.loads(told.read_text())
    assert verdict["is_good"], json.dumps(verdict, indent=1)
    assert done.returncode == 0
    assert sum(verdict["harm"].values()) >= 4
    assert verdict["taken_over"] > 0
    assert sum(verdict["finished"].values()) >= 12
