"""`cuvee up`: a cluster in the foreground, from the first line of progress to the last process."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from cluster.cli.call import say
from cluster.cli.options import DEFAULT_SERVER
from cluster.cli.output import print_json, print_line
from cluster.errors import CuveeError
from cluster.spec import ClusterSpec, ServingSpec
from deployments.local import LocalCluster
from deployments.progress import StartProgress

_LOOK_S = 5.0
_EXAMPLE = "It is a truth"


def serve_until_stopped(
    spec: ClusterSpec, *, ray_address: str | None, num_gpus: float | None, as_json: bool
) -> None:
    """Start, say where to call, wait for Ctrl-C or SIGTERM, stop."""
    with started(spec, ray_address=ray_address, num_gpus=num_gpus) as (cluster, start_s):
        if as_json:
            print_json(Console(), _as_mapping(cluster, start_s))
        else:
            _print_ready(Console(), cluster, start_s)
        sys.stdout.flush()
        wait_for_stop(cluster.look_at_room)


@contextmanager
def started(
    spec: ClusterSpec,
    *,
    ray_address: str | None = None,
    num_gpus: float | None = None,
    drain: bool = True,
) -> Iterator[tuple[LocalCluster, float]]:
    """A running cluster and how long its start took, with progress on stderr at both ends.

    Without `drain`, replies under way do not outlive the context.
    """
    console = Console(stderr=True)
    with StartProgress(console) as progress:
        cluster = LocalCluster(
            spec,
            ray_address=ray_address,
            num_gpus=num_gpus,
            watch=progress.watch,
            note=progress.note,
        )
        try:
            cluster.__enter__()
        except CuveeError as error:
            if cluster.log_folder and error.reason == "MEMBER_FAILED":
                error.message += f"\n  logs    {cluster.log_folder}"
            raise
        start_s = progress.elapsed_s
    try:
        yield cluster, start_s
    finally:
        words = "stopping; replies under way may finish, Ctrl-C ends them" if drain else "stopping"
        if not console.is_terminal:
            say(words)
        with console.status(words):
            try:
                cluster.stop(drain=drain)
            except KeyboardInterrupt:
                cluster.stop(drain=False)


def wait_for_stop(look: Callable[[], None] = lambda: None) -> None:
    """Until Ctrl-C or SIGTERM; looks after things now and then."""
    with contextlib.suppress(KeyboardInterrupt):
        while not threading.Event().wait(_LOOK_S):
            look()


def call_lines(cluster: LocalCluster) -> list[str]:
    """Commands that work as pasted into another terminal."""
    spec, address = cluster.spec, cluster.address
    server = "" if address == DEFAULT_SERVER else f" --server {address}"
    request = f'{{"blend":"{spec.default_blend}","prompt":"{_EXAMPLE}"}}'
    shown, curl = _credentials(spec.serving)
    return [
        f'cuvee generate{server}{shown} --blend {spec.default_blend} "{_EXAMPLE}"',
        f"cuvee chat{server}{shown}",
        f"grpcurl{curl} -d '{request}' {address} cuvee.v1.GenerationService/StreamGenerate",
    ]


def _credentials(serving: ServingSpec) -> tuple[str, str]:
    """What `cuvee` and grpcurl must show, with names for files that only their owner has."""
    shown, curl = "", " -plaintext" if serving.tls is None else " -cacert CA.crt"
    if serving.tls is not None:
        shown += " --ca CA.crt"
        if serving.tls.client_ca is not None:
            shown += " --client-cert CLIENT.crt --client-key CLIENT.key"
            curl += " -cert CLIENT.crt -key CLIENT.key"
    if serving.auth is not None:
        shown += " --api-key-file KEY"
        curl += ' -H "authorization: Bearer $(cat KEY)"'
    return shown, curl


def _print_ready(console: Console, cluster: LocalCluster, start_s: float) -> None:
    spec = cluster.spec
    counts = f"{_count(len(spec.blends), 'blend')} of {_count(len(spec.members), 'member')}"
    print_line(console, Text.assemble(("✓ ", "bold green"), f"{counts} ready in {start_s:.0f} s"))
    print_line(console)
    blends = [f"{name} (default)" if name == spec.default_blend else name for name in spec.blends]
    print_line(console, Text.assemble(("  gRPC    ", "dim"), (cluster.address, "bold")))
    print_line(console, Text.assemble(("  blends  ", "dim"), ", ".join(blends)))
    print_line(console)
    for line in call_lines(cluster):
        print_line(console, f"  {line}")
    print_line(console)
    print_line(console, Text("  Ctrl-C stops it", "dim"))


def _as_mapping(cluster: LocalCluster, start_s: float) -> dict[str, object]:
    spec = cluster.spec
    return {
        "ok": True,
        "address": cluster.address,
        "host": spec.serving.host,
        "port": cluster.port,
        "default_blend": spec.default_blend,
        "blends": list(spec.blends),
        "members": list(spec.members),
        "start_s": round(start_s, 3),
        "log_folder": cluster.log_folder,
        "ray_address": cluster.ray_address,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
