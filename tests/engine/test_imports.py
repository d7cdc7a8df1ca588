"""What the engine may not know of."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cluster.engine.engine

SOURCES = sorted(Path(cluster.engine.engine.__file__).parent.glob("*.py"))
FORBIDDEN = {"ray", "asyncio", "grpc", "cuvee", "deployments"}
PURE = {"types", "pool", "prefixes", "inbox"}  # no tensors either


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_engine_knows_neither_ray_nor_asyncio_nor_grpc(source: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert not names & FORBIDDEN
    assert source.stem not in PURE or not names & {"torch", "transformers"}
