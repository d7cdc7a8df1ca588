"""`python -m benchmarks.engine`: what a step of the engine takes, and what memory would allow.

One process per way of keeping freed memory; in each, the ways of running the same model take turns,
step by step, on one torch thread. Times are medians of the thread's processor time, so that other
work on the machine counts as little as it can: what it takes from caches and memory still counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cluster.engine.engine import Engine
from cluster.engine.loading import paged_runner
from cluster.engine.memory import keep_freed_memory
from cluster.engine.reading import read_model
from cluster.engine.runner import PagedRunner
from cluster.engine.types import Prefill, Sample, SamplingParams, Verdict, Work
from cluster.models.resolve import resolve
from deployments.bench.machine import machine_line
from deployments.bench.markdown import number, put_fragment, table

MODELS = ("embedded:tiny-austen", "fetched:smollm2")
SIZES = (1, 8, 16, 32)  # sequences in a step
WAYS = ("transformers", "joined", "packed")
_NUM_PROMPT, _NUM_CAUGHT_UP = 128, 3  # tokens
_PAGE_SIZE, _KV_BYTES = 16, 1 << 30
_READ_BYTES = 256 << 20

Times = dict[str, float]  # milliseconds by "model/way/what/sequences"


@dataclass(frozen=True, slots=True)
class Target:
    """What was asked for, and what came of it."""

    what: str
    wanted: str
    measured: float


def main() -> None:
    """Measure, print, and put the tables into a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="models by name")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="sequences in a step")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind")
    parser.add_argument("--into", type=Path, help="a page with engine markers")
    parser.add_argument("--turn", choices=("kept", "given back"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(_measure(options.models, options.sizes, options.rounds, options.turn)))
        return
    line = machine_line()
    kept, given_back = (_in_process(turn) for turn in ("kept", "given back"))
    lines = []
    for model in options.models:
        lines += [*_rows(model, options.sizes, kept, given_back), ""]
        lines += [*_targets(model, options.sizes, kept), ""]
    report = "\n".join([*lines, line])
    print(report)
    if options.into:
        put_fragment(options.into, "engine", report)


def _rows(model: str, sizes: Sequence[int], kept: Times, given_back: Times) -> list[str]:
    """Milliseconds per step."""
    head = (
        model,
        "transformers' pass",
        "joined",
        "packed",
        "joined, memory given back",
        f"packed, {_NUM_CAUGHT_UP} tokens caught up",
    )
    rows = []
    for size in sizes:
        found = [kept[f"{model}/{way}/decode/{size}"] for way in WAYS]
        found.append(given_back[f"{model}/joined/decode/{size}"])
        found.append(kept[f"{model}/packed/catch-up/{size}"])
        rows.append((str(size), *map(number, found)))
    return table(head, rows)


def _targets(model: str, sizes: Sequence[int], times: Times) -> list[str]:
    one = times[f"{model}/packed/decode/1"]
    generate, limit = times[f"{model}/generate"], times[f"{model}/limit"]
    found = [
        Target("one stream, of transformers' generate", "< 1", one / generate),
        Target("one stream, of reading its weights once", "≤ 2", one / limit),
    ]
    if 16 in sizes:
        many = times[f"{model}/packed/decode/16"]
        found.append(Target("16 streams' throughput, of one's", "≥ 6", 16 * one / many))
    rows = [(target.what, target.wanted, number(target.measured)) for target in found]
    rows.append(("generate, ms per token", "", number(generate)))
    rows.append(("reading its weights once, ms", "", number(limit)))
    rows.append(("reading, GB/s", "", number(times["read"])))
    return table((model, "wanted", "measured"), rows)


def _in_process(turn: str) -> Times:
    command = [sys.executable, "-m", "benchmarks.engine", *sys.argv[1:], "--turn", turn]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Times = json.loads(ended.stdout.splitlines()[-1])
    return found


def _measure(models: Sequence[str], sizes: Sequence[int], rounds: int, turn: str) -> Times:
    torch.set_num_threads(1)
    if turn == "kept":
        keep_freed_memory()
    data = torch.ones(_READ_BYTES // 4)
    read_ms = _median_ms(lambda: float(data.sum()), rounds)
    times: Times = {"read": _READ_BYTES / read_ms / 1e6}
    for model in models:
        folder = resolve(model, download=False)
        engines = {way: _engine(folder, way) for way in WAYS}
        for size in sizes:
            for name, took in _steps(engines, size, rounds).items():
                times[f"{model}/{name}/{size}"] = took
        share = 0.5 if _is_packed(engines["packed"]) else 1.0
        del engines
        times[f"{model}/generate"], num_bytes = _generate_ms(folder, rounds)
        times[f"{model}/limit"] = num_bytes * share / times["read"] / 1e6
    return times


def _engine(folder: Path, way: str) -> Engine:
    """The runner that loading would take, made without one of its ways to be fast, or with all."""
    torch.backends.quantized.engine = "x86" if way == "packed" else "onednn"  # which packs none
    loaded = read_model(folder, "float32", torch.device("cpu"))
    runner = paged_runner(loaded, _PAGE_SIZE, _KV_BYTES, varlen=False, fused=way != "transformers")
    torch.backends.quantized.engine = "x86"
    return Engine(runner, max_batch_tokens=1024)


def _is_packed(engine: Engine) -> bool:
    """Whether its matrices are large enough to lie in float16."""
    assert isinstance(engine._runner, PagedRunner)
    decoder = engine._runner._fused
    return decoder is not None and decoder.is_packed


def _steps(engines: dict[str, Engine], size: int, rounds: int) -> Times:
    """Medians of decode steps, and of steps that feed what others said and then draw, in turn."""
    sequences = {way: [engine.open() for _ in range(size)] for way, engine in engines.items()}
    took: dict[str, list[float]] = {}
    for way, engine in engines.items():
        for i, sequence in enumerate(sequences[way]):
            prompt = [(7 * i + j) % engine.vocab_size for j in range(_NUM_PROMPT)]
            engine.submit(Work(sequence, 0, prompt, Prefill()))
        while engine.has_work():
            engine.step()
    for step in range(rounds + 2):  # two to warm up
        for way, engine in engines.items():
            for what, news in (("decode", 0), ("catch-up", _NUM_CAUGHT_UP)):
                for sequence in sequences[way]:
                    tokens = [(step + j) % engine.vocab_size for j in range(news)]
                    engine.submit(Work(sequence, engine.num_ids(sequence), tokens, _one(step)))
                begin = time.thread_time()
                engine.step()
                if step > 1:
                    took.setdefault(f"{way}/{what}", []).append(time.thread_time() - begin)
                assert not engine.has_work()
    for way, engine in engines.items():
        for sequence in sequences[way]:
            engine.close(sequence)
        engine.step()
    return {name: median(found) * 1e3 for name, found in took.items()}


def _one(position: int) -> Sample:
    """One token at temperature 1."""
    return Sample(SamplingParams(), 0, position, lambda token: Verdict.KEEP_AND_STOP)


@torch.inference_mode()
def _generate_ms(folder: Path, rounds: int) -> tuple[float, int]:
    """Milliseconds per token of transformers' own loop, and the bytes of its weights."""
    model = read_model(folder, "float32", torch.device("cpu")).model
    generate: Any = model.generate
    prompt = torch.arange(_NUM_PROMPT)[None]
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run(num: int) -> float:
        begin = time.thread_time()
        out: Tensor = generate(prompt, max_new_tokens=num, **settings)
        assert out.shape[1] == _NUM_PROMPT + num
        return time.thread_time() - begin

    run(2)
    found = [(run(12) - run(2)) / 10 for _ in range(max(3, rounds // 4))]
    return median(found) * 1e3, sum(weight.nbytes for weight in model.parameters())


def _median_ms(run: Callable[[], object], rounds: int) -> float:
    run()
    found = []
    for _ in range(rounds):
        begin = time.thread_time()
        run()
        found.append(time.thread_time() - begin)
    return median(found) * 1e3


if __name__ == "__main__":
    main()
