"""`cuvee up` before and beside Ray: refusals, Serve's view read, progress, processes counted.

The whole of it is tested in `tests/cli/test_local.py`, which starts Ray.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import deployments.cli  # noqa: F401  # adds `up`
from cluster.cli.main import app
from cluster.errors import InvalidRequest
from cluster.spec import ClusterSpec, parse_spec
from deployments.demo import only_blends
from deployments.machine import check_port_is_free
from deployments.processes import await_end, descendants
from deployments.progress import StartProgress
from deployments.room import RoomWatch
from deployments.stages import RAY, ROUTER, Stage, failure_of, stages_of

SPEC = """
version: 1
members:
  a: {model: /models/a, resources: {num_gpus: 0.5}}
  b: {model: /models/b, replicas: 2}
  c: {model: /models/c}
blends:
  two: {method: mixture, members: {a: 1, b: 1}}
  one: {method: mixture, members: {c: 1}}
"""

FAILURE = """\
A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:cuvee:member-b.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)
  File "replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "build.py", line 15, in build_replica
    raise NotFound("MODEL_NOT_FOUND", f"there is no model (here)")
           ^^^^^^^^^
cluster.errors.NotFound: there is no model (here))"""


@pytest.fixture
def spec() -> ClusterSpec:
    return parse_spec(SPEC)


def details(**deployments: Any) -> dict[str, Any]:
    """What Serve tells of an application."""
    return {"deployments": {name.replace("_", "-"): it for name, it in deployments.items()}}


def replicas(*found: tuple[str, int | None]) -> dict[str, Any]:
    return {"replicas": [{"state": state, "pid": pid} for state, pid in found], "message": ""}


def test_a_replica_loads_once_its_process_is_there(spec: ClusterSpec) -> None:
    found = stages_of(
        details(
            member_a=replicas(("STARTING", None)),
            member_b=replicas(("STARTING", 12), ("STARTING", None)),
            router=replicas(("RUNNING", 13)),
        ),
        spec,
    )
    assert found == {
        "a": Stage.STARTING,
        "b": Stage.LOADING,
        "c": Stage.WAITING,
        ROUTER: Stage.READY,
    }


def test_a_replica_without_room_says_so_until_another_is_further(spec: ClusterSpec) -> None:
    found = stages_of(
        details(
            member_a=replicas(("STARTING", None)),
            member_b=replicas(("STARTING", None), ("RUNNING", 12)),
        ),
        spec,
        {"member-a", "member-b"},
    )
    assert (found["a"], found["b"]) == (Stage.PLACING, Stage.READY)


def test_what_waits_for_room_is_noted_once_until_all_replicas_run(spec: ClusterSpec) -> None:
    notes: list[str] = []
    waits = iter([{}, {"member-b": "b waits"}, {}, {"member-b": "b waits"}, {}, {}])
    watch = RoomWatch(spec, notes.append, lambda spec, details: next(waits))
    pending = details(member_b=replicas(("STARTING", None)) | {"target_num_replicas": 1})
    for _ in range(5):
        watch.look(pending)
    assert notes == ["no room for now: b waits"]
    watch.look(details(member_b=replicas(("RUNNING", 12)) | {"target_num_replicas": 1}))
    assert notes[1:] == ["member-b has all its replicas"]


def test_nothing_deployed_yet_is_waiting_and_no_failure(spec: ClusterSpec) -> None:
    assert set(stages_of({}, spec).values()) == {Stage.WAITING}
    assert failure_of({}) is None


def test_a_failed_constructor_is_told_in_its_own_words() -> None:
    found = details(member_a=replicas(), member_b={"replicas": [], "message": FAILURE})
    assert failure_of(found) == ("member 'b'", "there is no model (here)")


def test_a_failure_without_a_readable_error_gives_its_last_line() -> None:
    message = "The deployment failed to start 3 times in a row.\nsomething odd\n"
    assert failure_of(details(router={"message": message})) == ("router", "something odd")


def test_progress_in_a_log_has_a_line_per_change() -> None:
    out = io.StringIO()
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    with StartProgress(Console(file=out), clock=lambda: next(times)) as progress:
        progress.watch({"a": Stage.WAITING, ROUTER: Stage.WAITING, RAY: Stage.STARTING})
        progress.watch({"a": Stage.LOADING, ROUTER: Stage.WAITING, RAY: Stage.READY})
        progress.watch({"a": Stage.LOADING, ROUTER: Stage.WAITING, RAY: Stage.READY})
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["1.0", "s", "Ray", "starting"],
        ["2.0", "s", "Ray", "ready"],
        ["3.0", "s", "a", "loading"],
    ]


def test_a_port_in_use_is_refused_even_where_it_may_be_shared() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=r"--port") as refused:
            check_port_is_free("127.0.0.1", port)
    assert refused.value.reason == "PORT_TAKEN"
    check_port_is_free("127.0.0.1", port)


def test_the_demo_leaves_out_members_it_does_not_show(spec: ClusterSpec) -> None:
    trimmed = only_blends(spec, ("two",))
    assert list(trimmed.members) == ["a", "b"]
    assert list(trimmed.blends) == ["two"]
    assert trimmed.revision_of("two") == spec.revision_of("two")


def test_descendants_are_found_and_ended() -> None:
    before = descendants()
    program = "import subprocess; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", program]) as child:
        while len(started := descendants() - before) < 2:
            pass
        await_end(started, grace_s=0)
        child.wait()
    await_end(started, grace_s=5)
    assert not any(process.is_alive for process in started)


def test_a_wrong_blend_file_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(SPEC.replace("c: 1}", "d: 1}"))
    result = CliRunner().invoke(app, ["up", str(file)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{file}:9: blends.one.members.d: ")


def test_a_missing_model_is_told_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(SPEC)
    result = CliRunner().invoke(app, ["up", str(file), "--json"])
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["reason"] == "MODEL_NOT_FOUND"
    assert answer["field"] == "members.a.model"


def test_a_split_that_cannot_be_is_told_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(
        "version: 1\n"
        "members: {a: {model: embedded:tiny-kjv, tensor_parallel: 3}}\n"
        "blends: {one: {method: mixture, members: {a: 1}}}\n"
    )
    result = CliRunner().invoke(app, ["up", str(file), "--json"])
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["reason"], answer["field"]) == ("NOT_SPLITTABLE", "members.a.tensor_parallel")


def test_an_exact_blend_of_different_vocabularies_is_told_before_anything_starts(
    tmp_path: Path,
) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(
        "version: 1\n"
        "members: {a: {model: embedded:tiny-kjv}, b: {model: embedded:tiny-bytes}}\n"
        "blends: {two: {method: mixture, exact: true, members: {a: 1, b: 1}}}\n"
    )
    result = CliRunner().invoke(app, ["up", str(file), "--json"])
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["reason"], answer["field"]) == ("VOCABULARY_MISMATCH", "blends.two")
