"""`cuvee member` and `cuvee router` where Ray is not installed: the same text as in one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from cuvee.v1 import generation_pb2 as pb
from cuvee.v1 import generation_pb2_grpc
from tests.rig import running

SPEC = """
version: 1
members:
  austen: {model: embedded:tiny-austen, dtype: float32, kv_memory: 32MiB}
  kjv: {model: embedded:tiny-kjv, dtype: float32, kv_memory: 32MiB}
blends:
  tokens: {method: mixture, span: token, members: {austen: 0.5, kjv: 0.5}}
serving: {drain_s: 0}
"""
# As where it is not installed: whoever tries to import it fails.
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from deployments.cli import main
main()
"""
REQUEST = pb.StreamGenerateRequest(
    prompt="It is a truth", sampling=pb.Sampling(seed=5), stopping=pb.Stopping(max_tokens=24)
)


@contextmanager
def cuvee(*arguments: str) -> Iterator[dict[str, Any]]:
    """A command that runs until it is told to stop; gives what it said when it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_RAY, *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert process.stdout is not None
    try:
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, f"it has ended: {said}"
            said += line
        yield json.loads(said)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()
    assert process.returncode == 130


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    file = tmp_path / "blend.yaml"
    file.write_text(SPEC)
    return file


async def test_members_and_router_as_processes_say_what_one_process_says(
    spec_file: Path, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("a key that is long enough\n")
    file, keyed = str(spec_file), ("--key-file", str(key_file))
    with ExitStack() as stack:
        found = [stack.enter_context(cuvee("member", file, n, *keyed)) for n in ("austen", "kjv")]
        assert [told["member"] for told in found] == ["austen", "kjv"]
        at = [f"--member={told['member']}={told['address']}" for told in found]
        router = stack.enter_context(cuvee("router", file, *at, *keyed, "--port", "0"))
        assert router["blends"] == ["tokens"]
        text = await _text(router["address"])
    async with running(SPEC) as rig:
        assert text == await _text(f"127.0.0.1:{rig.edge.port}")


async def _text(address: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        return "".join([message.text_delta async for message in stub.StreamGenerate(REQUEST)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["member", "FILE", "owl"], "got 'owl'; expected a member of"),
        (["member", "FILE", "kjv", "--host", "0.0.0.0"], "got 0.0.0.0 and no key"),
        (["member", "FILE", "kjv", "--key-file", "SHORT"], "has 5 bytes; expected 16 or more"),
        (["router", "FILE", "--member", "kjv=127.0.0.1:1"], "got no address for austen"),
        (["router", "FILE", "--member", "kjv"], "expected NAME=HOST:PORT"),
        (["router", "FILE", *(f"--member={n}=h:1" for n in ("austen", "kjv", "owl"))],
         "got owl; expected members of the file"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_in_words(
    arguments: list[str], words: str, spec_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("short")
    names = {"FILE": str(spec_file), "SHORT": str(tmp_path / "short")}
    result = CliRunner().invoke(app, [names.get(word, word) for word in arguments])
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.replace("│", " ").split())
