"""Hurt a cluster in each of several ways, again and again, under a reply that must not change.

python -m benchmarks.faults [--runs 10] [--only NAME ...] [--json FILE] [--markdown FILE]

Takes some 20 s for each run of each fault, for what was lost to come back. Needs `ss` of iproute2
and, for the cut connection, the right to close others' sockets (CAP_NET_ADMIN).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.faults.faults import FAULTS, Fault
from benchmarks.faults.report import as_markdown
from benchmarks.faults.site import Site, running_site
from benchmarks.faults.streams import Wait, struck, undisturbed
from cluster.client import Client
from deployments.bench.machine import machine_line
from deployments.bench.markdown import put_fragment


def main(arguments: Sequence[str] | None = None) -> None:
    """Strike, read on, heal; then print."""
    options = _parser().parse_args(arguments)
    machine = machine_line()
    waits: dict[str, list[Wait]] = {}
    with running_site() as site, Client(site.address) as client:
        for fault in FAULTS:
            if not options.only or fault.name in options.only:
                waits[fault.name] = _runs(fault, site, client, options.runs)
    if options.json:
        runs = {name: list(map(asdict, found)) for name, found in waits.items()}
        options.json.write_text(json.dumps({"machine": machine, "waits": runs}))
    text = as_markdown(machine, waits)
    print(text)
    if options.markdown:
        put_fragment(options.markdown, "faults", text)


def _runs(fault: Fault, site: Site, client: Client, num_runs: int) -> list[Wait]:
    waits = []
    for seed in range(num_runs):
        wait, spot = struck(client, site, fault, undisturbed(client, seed), seed)
        print(f"{fault.name} {seed}: {wait}", file=sys.stderr, flush=True)
        fault.heal(site, spot)
        waits.append(wait)
    return waits


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10, help="of each fault")
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--json", type=Path, help="every run")
    parser.add_argument("--markdown", type=Path, help="a file with a place for the table")
    return parser


if __name__ == "__main__":
    main()
