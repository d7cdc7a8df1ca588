"""One run of `cuvee bench`, from a blend file to its tables."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import typer
from pydantic import ValidationError

from cluster.cli.call import EXIT_INTERRUPTED, Server, print_error
from cluster.cli.credentials import Credentials, current
from cluster.cli.output import working
from cluster.errors import CuveeError, InvalidRequest, Unavailable
from cluster.merging.cache import folder_of
from cluster.spec import ClusterSpec, load_spec
from cuvee.v1 import blend_pb2
from deployments.bench.cases import rival_cases, served_cases
from deployments.bench.children import Child
from deployments.bench.loading import LoaderPlan, Loaders
from deployments.bench.machine import Machine
from deployments.bench.markdown import put_fragment
from deployments.bench.picture import draw_run
from deployments.bench.races import ContestPlan, Reading, run_contest
from deployments.bench.report import Run, as_json, as_markdown
from deployments.bench.rounds import measure
from deployments.bench.settings import Settings
from deployments.bench.systems import FarSystem, System, as_processes, on_ray
from deployments.bench.workload import Subject, fresh_jobs, subjects_of
from deployments.demo import only_blends

_TIMEOUT_S = 30.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where a run goes besides the terminal."""

    json: Path | None = None  # a folder: a file in it, named by time and blend file
    picture: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure, and how Cuvée runs meanwhile."""

    settings: Settings
    file: Path | None = None  # None: tiny models
    blends: Sequence[str] = ()  # none: all
    address: str | None = None  # of a cluster that runs
    with_ray: bool = True
    with_rivals: bool = False
    num_clients: int = 1  # processes that load it


def run_bench(wanted: Wanted, outlet: Outlet) -> None:
    """Start, measure, stop, tell; errors become words and exit codes."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also of processes started here
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with working("starting") as say:
            run = measured_run(wanted, say)
    except CuveeError as error:
        print_error(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    tell(run, outlet)


def measured_run(wanted: Wanted, say: Say) -> Run:
    """From start to stop; raises CuveeError."""
    if wanted.address is not None:
        return _measured(wanted, FarSystem(wanted.address), None, current.get(), say)
    file = wanted.file or Path(str(files("deployments.bench") / "tiny.yaml"))
    spec = _chosen(load_spec(file), wanted.blends)
    for name, member in spec.members.items():
        try:
            folder_of(member, download=False)
        except CuveeError as error:
            error.message = f"{file}: members.{name}.model: {error.message}"
            raise
    starting = on_ray(spec) if wanted.with_ray else as_processes(file, spec)
    with starting as system:
        return _measured(wanted, system, spec, Credentials(), say, name=file.stem)


def tell(run: Run, outlet: Outlet) -> None:
    """On stdout, and wherever it was wanted."""
    tables = as_markdown(run)
    print(tables, flush=True)
    if outlet.json is not None:
        target = outlet.json
        if target.is_dir():
            target = target / f"{run.machine.time[:16].replace(':', '')}-{run.name}.json"
        target.write_text(as_json(run), encoding="utf-8")
    if outlet.picture is not None:
        outlet.picture.write_text(draw_run(run), encoding="utf-8")
    if outlet.markdown is not None:
        put_fragment(outlet.markdown, run.name, tables)


def _chosen(spec: ClusterSpec, blends: Sequence[str]) -> ClusterSpec:
    """The spec without other blends, and without the members that only those use."""
    if unknown := [name for name in blends if name not in spec.blends]:
        words = f"got {', '.join(unknown)}; expected blends of: {', '.join(spec.blends)}"
        raise InvalidRequest("UNKNOWN_BLEND", words, field="blend")
    try:
        return only_blends(spec, tuple(blends)) if blends else spec
    except ValidationError:  # a ranker or a gate uses members of other blends
        return spec


def _measured(
    wanted: Wanted,
    system: System,
    spec: ClusterSpec | None,
    credentials: Credentials,
    say: Say,
    name: str = "elsewhere",
) -> Run:
    machine, settings = Machine.here(), wanted.settings
    try:
        subjects = subjects_of(_listed(system.address, credentials), wanted.blends)
    except ValueError as error:
        raise InvalidRequest("UNKNOWN_BLEND", str(error), field="blend") from None
    num_threads = _num_threads(spec) if spec else 0
    with ExitStack() as stack:
        plan = LoaderPlan(system.address, credentials)
        loaders = stack.enter_context(Loaders(plan, wanted.num_clients))
        cases = served_cases(subjects, settings, loaders)
        contest: Child[Any] | None = None
        if wanted.with_rivals and spec:
            say("starting the rivals")
            contest = stack.enter_context(_contest(spec, num_threads, system.ray_address))
            cases += rival_cases(subjects, settings, loaders, contest)
        measured = measure(cases, system, settings, fresh_jobs(settings.num_prompt_words), say)
        say("reading memory")
        reading: Reading | None = contest.ask(None) if contest else None
    return Run(
        name=name,
        way=system.way,
        machine=machine,
        models=_models(spec, subjects),
        num_threads=num_threads,
        settings=settings,
        subjects=subjects,
        measured=measured,
        reading=reading,
    )


@contextmanager
def _contest(spec: ClusterSpec, num_threads: int, ray_address: str) -> Iterator[Child[Any]]:
    members = {n: m.model_dump(mode="json", by_alias=True) for n, m in spec.members.items()}
    plan = ContestPlan(members, num_threads, ray_address)
    child: Child[Any] = Child(run_contest, plan, has_children=True)
    with child as contest:
        contest.address()
        yield contest


def _num_threads(spec: ClusterSpec) -> int:
    """As replicas take them: by their CPUs."""
    first = next(iter(spec.members.values()))
    return max(1, round(first.resources.num_cpus / first.num_shards))


def _models(spec: ClusterSpec | None, subjects: Sequence[Subject]) -> dict[str, str]:
    used = dict.fromkeys(name for subject in subjects for name in subject.weights)
    if spec is None:
        return dict.fromkeys(used, "")
    members = spec.members
    return {name: f"{members[name].model_name}, {members[name].dtype}" for name in used}


def _listed(address: str, credentials: Credentials) -> list[blend_pb2.Blend]:
    """What is served; raises Unavailable."""
    with Server(address, credentials) as server:
        try:
            answer = server.blends.ListBlends(blend_pb2.ListBlendsRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            words = f"{address} cannot be asked: {error.details()}"
            raise Unavailable("SERVER_UNAVAILABLE", words) from None
    if not answer.blends:
        raise Unavailable("NO_BLENDS", f"{address} serves nothing yet; its members may be loading")
    return list(answer.blends)
