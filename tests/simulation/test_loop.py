"""The autoscaling loop on paper: what it must do whatever the settings, and what it proposes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.spec import parse_spec
from deployments.cli import app
from deployments.kubernetes.overlays import FOLDER
from deployments.scaling import TOO_LITTLE
from deployments.simulation.advice import advise, reaction_s, shares_of
from deployments.simulation.loop import Delays, Load, Settings, simulate

SETTINGS = Settings(
    min_replicas=1,
    max_replicas=8,
    target_leases=4,
    window_s=4,
    upscale_delay_s=2,
    downscale_delay_s=15,
    node_idle_s=60,
)
QUICK = Delays(replica_s=5, pod_s=2, node_s=0)
LOAD = Load(few=1, many=18, rise_s=5, hold_s=300, reply_s=4)


def test_replicas_follow_the_load_up_and_down_again() -> None:
    course = simulate(LOAD, 1.0, SETTINGS, QUICK, turns=2)
    few, many, again = (
        course.replicas[at_s]
        for at_s in (LOAD.hold_s - 1, 2 * LOAD.hold_s, LOAD.period_s + LOAD.hold_s - 1)
    )
    assert 18 / 4 <= many <= 18 / 4 / TOO_LITTLE + 1
    assert few == again == 1


def test_the_measured_ramp_comes_out_of_it() -> None:
    """docs/scaling.md: of 18 streams a member with nine tenths of the work went to its 4."""
    settings = replace(SETTINGS, max_replicas=4)
    often, rarely = (simulate(LOAD, share, settings, QUICK, turns=1) for share in (0.9, 0.1))
    assert (max(often.replicas), max(rarely.replicas)) == (4, 1)


def test_a_constant_load_starts_nobody_who_leaves_again() -> None:
    steady = Load(few=10, many=10, hold_s=1000)
    course = simulate(steady, 1.0, SETTINGS, QUICK)
    (num,) = set(course.replicas[500:])
    assert 10 / 4 <= num <= 10 / 4 / TOO_LITTLE + 1
    assert course.num_started == num - 1
    assert course.slowness_of(0.5) == 1.0


def test_slow_starts_make_streams_slower_and_pods_that_stay_make_them_faster() -> None:
    slow = simulate(LOAD, 1.0, SETTINGS, Delays(replica_s=60, pod_s=30, node_s=150))
    ready = simulate(LOAD, 1.0, replace(SETTINGS, min_replicas=5), QUICK)
    quick = simulate(LOAD, 1.0, SETTINGS, QUICK)
    assert slow.slowness_of(0.95) > quick.slowness_of(0.95) > ready.slowness_of(0.95)
    assert ready.pod_s > quick.pod_s


def test_a_member_that_sleeps_is_woken() -> None:
    asleep = replace(SETTINGS, min_replicas=0)
    course = simulate(replace(LOAD, few=0), 1.0, asleep, QUICK, turns=1)
    assert course.replicas[LOAD.hold_s - 1] == 0
    assert max(course.replicas) >= 5


def test_pods_are_never_fewer_than_replicas_nor_kept_for_ever() -> None:
    course = simulate(LOAD, 1.0, SETTINGS, QUICK)
    assert course.pod_s >= sum(course.replicas)
    assert course.pod_s < 6 * len(course.replicas)


def test_advice_is_the_cheapest_that_is_fast_enough() -> None:
    spec = parse_spec((FOLDER / "overlays/gpu/blend.yaml").read_text())
    shares = shares_of(spec.blends["chat"])
    gentle = Load(few=20, many=200, rise_s=400, hold_s=400)
    near = Delays(replica_s=20, pod_s=10, num_spare_pods=20)
    found = {a.member: a for a in advise(spec.members, shares, gentle, near, 1.5)}
    assert list(found) == ["small", "large"]
    assert all(advice.is_enough and advice.slowness <= 1.5 for advice in found.values())
    assert found["small"].mean_pods > found["large"].mean_pods
    for advice in found.values():
        assert advice.mean_pods < advice.most_pods
        chosen = simulate(gentle, advice.share, advice.settings, near)
        one_less = replace(advice.settings, min_replicas=advice.settings.min_replicas + 1)
        assert chosen.pod_s <= simulate(gentle, advice.share, one_less, near).pod_s


def test_all_members_of_an_ensemble_work_all_the_time() -> None:
    text = "version: 1\nmembers: {a: {model: embedded:x}, b: {model: embedded:x}}\n"
    blend = "blends: {all: {method: METHOD, members: {a: 0.9, b: 0.1}}}\n"
    mixture, ensemble = (
        parse_spec(text + blend.replace("METHOD", method)).blends["all"]
        for method in ("mixture", "ensemble")
    )
    assert shares_of(mixture) == {"a": 0.9, "b": 0.1}
    assert shares_of(ensemble) == {"a": 1.0, "b": 1.0}


def test_reaction_is_the_sum_of_the_links() -> None:
    settings = replace(SETTINGS, window_s=20, upscale_delay_s=10)
    assert reaction_s(settings, Delays(60, 30, 150)) == 10 + 10 + 2.5 + 180 + 60
    assert reaction_s(settings, Delays(60, 30, 150, num_spare_pods=1)) == 10 + 10 + 2.5 + 30 + 60


def test_the_command_prints_what_can_be_pasted_into_the_file(tmp_path: Path) -> None:
    file = str(FOLDER / "overlays/gpu/blend.yaml")
    run = CliRunner().invoke
    given = ["simulate", file, "--streams", "10:60", "--hold", "300", "--load", "10"]
    said = run(app, given).stdout
    assert "small: {autoscaling: {min_replicas: " in said
    assert "# cuvee render k8s FILE --node-idle-s " in said
    told = json.loads(run(app, [*given, "--json"]).stdout)
    assert [member["member"] for member in told["members"]] == ["small", "large"]


@pytest.mark.parametrize("given", ["20", "200:20", "-1:2", "a:b", "0:0"])
def test_wrong_streams_are_explained(given: str) -> None:
    file = str(FOLDER / "overlays/gpu/blend.yaml")
    done = CliRunner().invoke(app, ["simulate", file, f"--streams={given}"])
    assert done.exit_code == 2
    assert "expected such as 20:200" in done.stderr
