"""`python -m benchmarks.merge`: two SmolLM2-sized models become one, beside a copy of the bytes.

One model is the fetched SmolLM2, the other its copy with a little noise on every weight. Each turn,
in a process of its own, drops the inputs from the page cache, then either merges or copies: reads
both inputs and writes as many bytes as the result has. Both end with the bytes on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from cluster.models.resolve import models_home, resolve
from deployments.bench.machine import machine_line
from deployments.bench.markdown import number, put_fragment, table

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear")
_ON_CHANGES = ("task_arithmetic", "ties", "dare_linear")
_CHUNK_BYTES = 8 << 20
_MIB = 1 << 20

Run = Callable[[], tuple[int, int]]  # bytes read and written


def main() -> None:
    """Measure, print, and put the table into a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each kind")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--into", type=Path, help="a page with merge markers")
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(_turn(options.turn[0], Path(options.turn[1]))))
        return
    line = machine_line()
    with tempfile.TemporaryDirectory(dir=models_home()) as name:
        folder = Path(name)
        _make_models(folder)
        kinds = ("copy", *options.methods)
        turns: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind in kinds:
                turns[kind].append(_in_process(kind, folder))
    report = "\n".join([*_rows(turns), "", line])
    print(report)
    if options.into:
        put_fragment(options.into, "merge", report)


def _rows(turns: dict[str, list[dict[str, float]]]) -> list[str]:
    """Medians; the rate counts bytes read and written, and its share is of the copy's."""

    def middle(kind: str, what: str) -> float:
        return median(turn[what] for turn in turns[kind])

    def rate(kind: str) -> float:
        moved = middle(kind, "read_bytes") + middle(kind, "written_bytes")
        return moved / middle(kind, "took_s")

    rows = [
        (
            kind,
            number(middle(kind, "took_s")),
            number(middle(kind, "cpu_s")),
            number(middle(kind, "read_bytes") / _MIB),
            number(middle(kind, "written_bytes") / _MIB),
            number(rate(kind) / _MIB),
            number(rate(kind) / rate("copy")),
            number(middle(kind, "peak_bytes") / _MIB),
        )
        for kind in turns
    ]
    head = ("", "seconds", "of CPU", "MiB read", "MiB written", "MiB/s", "of the copy", "peak MiB")
    return table(head, rows)


def _make_models(folder: Path) -> None:
    """The fetched model and a relative of it."""
    source = resolve("fetched:smollm2", download=False)
    for name in ("base", "tuned"):
        shutil.copytree(source, folder / name)
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.01
        tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, folder / "tuned" / "model.safetensors", {"format": "pt"})
    os.sync()


def _in_process(kind: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.merge", "--turn", kind, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _turn(kind: str, folder: Path) -> dict[str, float]:
    """One measured merge or copy; importing and comparing the inputs is done before."""
    torch.set_num_threads(1)
    inputs = [folder / name / "model.safetensors" for name in ("base", "tuned")]
    out = folder / f"out-{kind}"
    run = _copy(inputs, out) if kind == "copy" else _merge(kind, folder, out)
    for file in inputs:
        _forget(file)
    begin_s, begin_cpu_s = time.monotonic(), time.process_time()
    num_read, num_written = run()
    took_s, cpu_s = time.monotonic() - begin_s, time.process_time() - begin_cpu_s
    shutil.rmtree(out)
    return {
        "took_s": took_s,
        "read_bytes": num_read,
        "written_bytes": num_written,
        "cpu_s": cpu_s,
        "peak_bytes": _peak_bytes(),
    }


def _merge(method: str, folder: Path, out: Path) -> Run:
    from cluster.merging.merge import merge
    from cluster.spec import RecipeSpec

    base, tuned = (str(folder / name) for name in ("base", "tuned"))
    content: dict[str, object] = {"merge_method": method, "models": [{"model": tuned}]}
    if method in _ON_CHANGES:
        content |= {"base_model": base, "parameters": {"weight": 0.5}}
        if method != "task_arithmetic":
            content["parameters"] = {"weight": 0.5, "density": 0.5}
    else:
        content["models"] = [{"model": base}, {"model": tuned}]
    recipe = RecipeSpec.model_validate(content)
    from transformers import AutoConfig

    AutoConfig.from_pretrained(base)  # what Python imports for that is no part of the merge

    def run() -> tuple[int, int]:
        done = merge(recipe, out)
        return done.num_bytes_read, done.num_bytes_written

    return run


def _copy(inputs: Sequence[Path], out: Path) -> Run:
    """Read all, write the first: what the disk takes for a merge's bytes."""

    def run() -> tuple[int, int]:
        out.mkdir()
        buffer = bytearray(_CHUNK_BYTES)
        view, num_read, num_written = memoryview(buffer), 0, 0
        with (out / "copy").open("wb", buffering=0) as target:
            for place, file in enumerate(inputs):
                with file.open("rb", buffering=0) as source:
                    while num := source.readinto(buffer):
                        num_read += num
                        if place == 0:
                            num_written += target.write(view[:num])
            os.fsync(target.fileno())
        return num_read, num_written

    return run


def _peak_bytes() -> int:
    """Of this process alone: what `getrusage` says counts that of its parent before `exec`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _forget(file: Path) -> None:
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
