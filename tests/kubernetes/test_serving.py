"""What `serve deploy` makes of overlays' configurations, on a real Ray cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from deployments.metric_names import MEMBER_GAUGES, RAY_PREFIX
from tests.kubernetes.objects import spec_of
from tests.kubernetes.serving_overlays import DEPLOYED

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("serving")
    command = [sys.executable, "-m", "tests.kubernetes.serving_overlays", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("overlay", DEPLOYED)
def test_overlays_are_deployed_and_answer(overlay: str, said: dict[str, Any]) -> None:
    assert said[overlay]["num_tokens"] == 24
    assert set(said[overlay]["members"]) <= spec_of(overlay).members.keys()


def test_routers_and_members_tell_their_metrics_under_the_names_asked_for(
    said: dict[str, Any],
) -> None:
    assert said["local"]["drawn"] == 24  # its one router's
    names = {RAY_PREFIX + name for name, _ in MEMBER_GAUGES.values()}
    assert set(said["local"]["told_by_ray"]) == names
