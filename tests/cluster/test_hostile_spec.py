"""Blend files that mean harm end in SpecError, soon, and within memory."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from cluster.errors import SpecError
from cluster.spec import parse_spec
from tests.hostile import mutated, resident_bytes

DEMO = (Path(__file__).parents[2] / "cluster/models/demo.yaml").read_text()
HEAD = "version: 1\nmembers: {a: {model: org/a}}\n"
BLENDS = "blends: {x: {method: mixture, members: {a: 1}}}\n"
MAX_CPU_S = 5.0  # of this process: what others do at the same time counts for nothing
MAX_GROWTH_BYTES = 200 << 20

LISTS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
BOMBS = {
    "aliases": "l0: &l0 [x]\n" + LISTS,
    "merges": "m0: &m0 {a: 1}\n" + MERGES,
    "merges at the right place": HEAD + "m0: &m0 {a: 1}\n" + MERGES + "blends: {x: *m11}\n",
    "itself": "a: &a [*a]\n",
    "itself, merged": "a: &a\n  <<: *a\n",
    "deep flow": "[" * 3000,
    "deep flow, closed": "a: " + "[" * 2000 + "]" * 2000,
    "deep mappings": "{a: " * 3000,
    "deep block": "\n".join(" " * i + "a:" for i in range(1200)),
    "long number": HEAD + f"serving: {{port: {'9' * 300_000}}}\n",
    "long hexadecimal": HEAD + f"serving: {{port: 0x{'f' * 300_000}}}\n",
    "long sexagesimal": HEAD + f"serving: {{port: 1{':59' * 100_000}}}\n",
    "long float": HEAD + f"limits: {{max_deadline_s: 1{':59' * 100_000}.5}}\n",
    "large": "a" * (2 << 20),
    "many keys": HEAD + "blends:\n" + "".join(f"  b{i}: {{}}\n" for i in range(2000)),
    "dangling": "version: 1\nmembers:\n"
    + "".join(f"  m{i}: {{model: org/a}}\n" for i in range(400))
    + "blends:\n"
    + "".join(f"  b{i}: {{method: mixture, members: {{n{i}: 1}}}}\n" for i in range(400)),
    "long keys": HEAD + f"{'x' * 400_000}: 1\n{'y' * 400_000}: 1\n",
    "doubled keys": HEAD + "blends: {}\n" * 2000,
    "many documents": "---\na: 1\n" * 1000,
    "nul": "a: \0\n",
    "surrogate": "a: \ud800\n",
    "python": "!!python/object/apply:os.system [true]\n",
    "no integer": HEAD + "serving: {port: !!int ''}\n",
    "no truth": HEAD + "serving: {plaintext: !!bool maybe}\n",
    "no time": HEAD + "serving: {port: !!timestamp soon}\n",
    "no float": HEAD + "limits: {max_deadline_s: !!float ''}\n",
    "a set": HEAD + "blends: !!set {x}\n",
    "an ordered map": HEAD + "blends: !!omap [x: 1]\n",
    "binary": HEAD + "blends: !!binary '===='\n",
    "tab": "a:\n\t- b\n",
    "empty": "",
}


def outcome(text: str) -> str:
    """`valid`, or the reason it is refused for; anything else is raised."""
    started_s, before = time.process_time(), resident_bytes()
    reason = "valid"
    try:
        parse_spec(text)
    except SpecError as error:
        reason = error.reason
    assert time.process_time() - started_s < MAX_CPU_S
    assert resident_bytes() - before < MAX_GROWTH_BYTES
    return reason


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_bounded_time_and_memory(bomb: str) -> None:
    assert outcome(BOMBS[bomb]) in {"SPEC_NOT_YAML", "SPEC_INVALID"}


def test_numbers_beyond_measure_are_refused_where_they_stand() -> None:
    for number in ("1e400", "-1e400", ".inf", ".nan", "9" * 99, "0x" + "f" * 90, "1:59:59", "-0"):
        for place in ("serving: {port: %s}", "limits: {max_deadline_s: %s}"):
            text = HEAD + BLENDS + place % number + "\n"
            assert outcome(text) in {"SPEC_INVALID", "valid"}


def test_aliases_and_merges_of_ordinary_size_are_fine() -> None:
    text = (
        "version: 1\nmembers:\n  a: &a {model: org/a}\n  b: {<<: *a, dtype: bfloat16}\n"
        "blends: {x: {method: mixture, members: {a: 1, b: 1}}}\n"
    )
    assert parse_spec(text).members["b"].model == "org/a"


@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_a_few_bytes_changed_is_valid_or_explained(seed: int) -> None:
    rng = random.Random(seed)
    reasons = {outcome(mutated(DEMO.encode(), rng).decode("utf-8", "replace")) for _ in range(40)}
    assert reasons <= {"valid", "SPEC_NOT_YAML", "SPEC_INVALID"}


@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_lines_moved_is_valid_or_explained(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        lines = DEMO.splitlines()
        for _ in range(rng.randint(1, 6)):
            at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
            if rng.random() < 0.5:
                lines[at], lines[to] = lines[to], lines[at]
            else:
                lines.insert(to, " " * rng.randrange(6) + lines[at].strip())
        assert outcome("\n".join(lines)) in {"valid", "SPEC_NOT_YAML", "SPEC_INVALID"}
