"""`cuvee eval perplexity` against a real server in this process."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import cluster.models
from cluster.cli.main import app
from cluster.cli.paint import PALETTE
from cluster.cli.perplexity import cut
from cluster.models.resolve import resolve
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD_OUT = Path(cluster.models.__file__).parent / "embedded" / "held_out" / "austen.txt"
TINY = "dtype: float32, kv_memory: 32MiB"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
blends:
  tokens: {{method: mixture, members: {{austen: 0.5, kjv: 0.5}}}}
  adaptive: {{method: mixture, adapt: {{}}, members: {{austen: 0.5, kjv: 0.5}}}}
  product: {{method: ensemble, rule: product, members: {{austen: 0.5, kjv: 0.5}}}}
  contrast: {{method: contrast, members: {{austen: expert, kjv: amateur}}}}
  words: {{method: mixture, members: {{austen: 0.5, bytes: 0.5}}}}
"""
SVG = "{http://www.w3.org/2000/svg}"
SIZES = ("--context", "60", "--passage", "120", "--limit", "3")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


async def measured(rig: Rig, *arguments: str) -> Any:
    environment = {"CUVEE_SERVER": f"127.0.0.1:{rig.edge.port}", "COLUMNS": "120"}
    command = ["eval", "perplexity", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, app, command, env=environment)


def plain_bits_per_byte(model: str) -> float:
    folder = resolve(model, download=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats, num_bytes = 0.0, 0
    for passage in cut(HELD_OUT, 60, 120, 3):
        before = tokenizer(passage.before).input_ids
        text = tokenizer(passage.text, add_special_tokens=False).input_ids
        with torch.inference_mode():
            rows = torch.log_softmax(plain(torch.tensor([before + text])).logits[0].double(), -1)
        nats -= sum(float(rows[len(before) - 1 + i, id]) for i, id in enumerate(text))
        num_bytes += len(passage.text.encode())
    return nats / math.log(2) / num_bytes


async def test_members_and_blends_are_measured_side_by_side(rig: Rig) -> None:
    result = await measured(rig, str(HELD_OUT), *SIZES, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    bits = {row["name"]: row["bits_per_byte"] for row in answer["bits_per_byte"]}
    kinds = {row["name"]: row["kind"] for row in answer["bits_per_byte"]}
    assert answer["num_passages"] == 3
    assert {name for name, kind in kinds.items() if kind == "member"} == {"austen", "kjv", "bytes"}
    assert bits["austen"] == pytest.approx(plain_bits_per_byte("embedded:tiny-austen"), abs=1e-3)
    assert bits["bytes"] == pytest.approx(plain_bits_per_byte("embedded:tiny-bytes"), abs=1e-3)
    assert bits["austen"] < bits["adaptive"] < bits["tokens"] < bits["kjv"]
    assert bits["contrast"] is None  # it excludes tokens that occur
    assert "words" not in bits  # text between tokenizers: no likelihood in closed form
    assert math.isfinite(bits["product"])


async def test_people_get_a_sorted_picture(rig: Rig) -> None:
    result = await measured(rig, str(HELD_OUT), *SIZES, "--blend", "tokens", "--blend", "contrast")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["austen", "tokens", "kjv"]
    assert "█" in lines[0]
    assert "contrast" in lines[3]
    assert "∞: it excludes some token" in lines[3]
    assert lines[-1].startswith("bits per byte over 3 passages")


@pytest.mark.parametrize("suffix", [".svg", ".html"])
async def test_a_picture_holds_every_number_and_nothing_from_elsewhere(
    rig: Rig, tmp_path: Path, suffix: str
) -> None:
    other = tmp_path / "a <b> & 'c'.txt"
    other.write_text(HELD_OUT.with_name("kjv.txt").read_text()[:2000])
    picture = tmp_path / f"bits{suffix}"
    blends = ("--blend", "tokens", "--blend", "contrast")
    result = await measured(
        rig, str(HELD_OUT), str(other), *SIZES, *blends, "--json", "--plot", str(picture)
    )
    assert result.exit_code == 0, result.output
    text = picture.read_text()
    root = ElementTree.fromstring(text.removeprefix("<!doctype html>"))
    svg = root if suffix == ".svg" else root.find(f".//{SVG}svg")
    assert svg is not None
    panels = {}
    for group in svg.findall(f"{SVG}g"):
        name, *labels = ("".join(node.itertext()) for node in group.findall(f"{SVG}text"))
        panels[name] = dict(zip(labels[::2], labels[1::2], strict=True))
        bars = group.findall(f"{SVG}rect")
        lengths = [float(bar.get("width", "")) for bar in bars]
        finite = [float(words) for words in labels[1::2] if "∞" not in words]
        ratios = [length / bits for length, bits in zip(lengths, finite, strict=True)]
        assert ratios == pytest.approx([ratios[0]] * len(finite), rel=1e-2)
        assert {bar.get("fill") for bar in bars} <= set(PALETTE)
    assert list(panels) == ["all files", str(HELD_OUT), str(other)]
    rows = json.loads(result.stdout)["bits_per_byte"]
    assert panels["all files"] == {
        f"{r['name']} {r['kind']}": words(r["bits_per_byte"]) for r in rows
    }
    for at, panel in enumerate(list(panels)[1:]):
        for row in rows:
            part = row["by_passage"][3 * at : 3 * at + 3]
            shown = panels[panel][f"{row['name']} {row['kind']}"]
            if None in part:
                assert shown.startswith("∞")
            else:  # passages are about as long as each other in bytes
                assert float(shown) == pytest.approx(sum(part) / 3, rel=0.02)
    assert "prefers-color-scheme: dark" in text
    elsewhere = ("<script", "<image", "<link", "href", "src=", "url(", "@import")
    assert not any(word in text for word in elsewhere)
    addresses = re.findall(r"https?://[^\"]*", text)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}


def words(bits: float | None) -> str:
    return "∞: it excludes some token" if bits is None else f"{bits:.4f}"


async def test_a_picture_of_another_kind_is_refused() -> None:
    result = CliRunner().invoke(
        app, ["eval", "perplexity", str(HELD_OUT), "--plot", "bits.png"], env={"COLUMNS": "120"}
    )
    assert result.exit_code == 2
    assert "bits.png; expected a name that ends in .html or .svg" in result.stderr


async def test_a_text_without_room_for_a_passage_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("short")
    result = CliRunner().invoke(app, ["eval", "perplexity", str(file)])
    assert result.exit_code == 2
    assert "5 characters" in result.stderr


async def test_passages_cover_the_text_once(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(97 + i % 26) for i in range(1000)))
    passages = list(cut(file, 100, 300, 50))
    assert [len(passage.text) for passage in passages] == [300, 300, 300]
    assert "".join(passage.text for passage in passages) == file.read_text()[100:]
    assert all(len(passage.before) == 100 for passage in passages)
