"""`cuvee explain` and its page: who drew each token, how likely, and what else there was."""

from __future__ import annotations

import asyncio
import html
import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.cli.page import make_page
from cluster.cli.paint import Voices
from cluster.cli.tokens import spelled
from cuvee.v1 import generation_pb2 as pb
from tests.cli.scripted_server import make_blend
from tests.rig import running

TINY = "dtype: float32, kv_memory: 32MiB"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  base: {{model: embedded:tiny-base, {TINY}}}
blends:
  mean: {{method: ensemble, candidates: 16, members: {{austen: 0.5, kjv: 0.5}}}}
  tuned: {{method: proxy, members: {{base: base, austen: expert, kjv: anti}}}}
  follows: {{method: mixture, adapt: {{}}, members: {{austen: 0.5, kjv: 0.5}}}}
  letters: {{method: ensemble, unit: byte, members: {{austen: 0.5, kjv: 0.5}}}}
"""


async def explained(*arguments: str) -> Any:
    async with running(SPEC) as rig:
        environment = {"CUVEE_SERVER": f"127.0.0.1:{rig.edge.port}", "COLUMNS": "300"}
        command = ["explain", "It is a truth", "--seed", "3", "--max-tokens", "6", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command, env=environment)


async def test_a_line_per_token_has_chance_shares_candidates_and_bound(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = await explained("--blend", "mean", "--html", str(page))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(i) for i in range(6)]
    for line in lines:
        assert re.search(r"⟨a⟩\d+% ⟨k⟩\d+%", line)
        assert re.search(r"±\d", line)
        assert len(re.findall(r"\d+\.\d%", line)) >= 4  # its own, three candidates'
    text = page.read_text()
    assert "error at most" in text
    assert "http" not in text.replace("<!doctype html>", "")  # nothing from elsewhere
    assert "<script" not in text


async def test_parameters_can_be_set_and_roles_are_shown(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = await explained("--blend", "tuned", "--set", "alpha=0", "--html", str(page), "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert {token["member"] for token in answer["tokens"]} == {"base"}
    assert "expert" in page.read_text()
    refused = await explained("--blend", "tuned", "--set", "beta=1")
    assert refused.exit_code == 1
    assert "UNKNOWN_PARAMETER" in refused.stderr


async def test_weights_that_change_are_shown_beside_the_speaker(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = await explained("--blend", "follows", "--html", str(page))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.search(r"⟨[ak]⟩100% of ⟨a⟩50% ⟨k⟩50%", lines[0])
    assert all(re.search(r"⟨[ak]⟩100% of ⟨a⟩\d+% ⟨k⟩\d+%", line) for line in lines)
    assert page.read_text().count(">of</span>") == len(lines)


def test_what_a_model_says_cannot_break_the_page() -> None:
    evil = "<script>alert('x')</script> & \"quotes\" 👩‍👩‍👧"
    data = evil.encode()
    response = pb.GenerateResponse(text=evil)
    for position, piece in enumerate((data[:40], data[40:])):  # cut inside a character
        response.tokens.add(
            member=("ann", "bob")[position], bytes=piece, position=position, logprob=-1.0
        )
    blend = make_blend()
    page = make_page(blend, "<b>prompt</b>", response, Voices(["ann", "bob"]))
    assert "<script>" not in page
    assert "<b>" not in page
    reply = re.search(r'<div class="reply">(.*?)</div>', page, re.DOTALL)
    assert reply is not None
    runs = re.findall(r"</sup>(.*?)</span>", reply.group(1), re.DOTALL)
    assert "".join(map(html.unescape, runs)) == evil
    assert "⟨a⟩" in page


async def test_a_blend_by_bytes_has_a_line_per_byte_and_says_that_it_is_approximate() -> None:
    result = await explained("--blend", "letters")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(i) for i in range(6)]
    assert all(re.match(r" +\d+  '\\?.' ", line) for line in lines)
    assert all(re.search(r"⟨a⟩\d+% ⟨k⟩\d+%", line) for line in lines)
    assert re.search(r"approximate: \d\.\d\d% left out per byte", result.stderr)


def test_what_is_no_whole_character_is_spelled_in_hexadecimal() -> None:
    assert [spelled(bytes([byte])) for byte in "é".encode()] == [r"'\xc3'", r"'\xa9'"]
    assert spelled("né".encode()) == "'né'"
    assert spelled(b"\x1b[31m\xc3") == r"'\x1b[31m\xc3'"
