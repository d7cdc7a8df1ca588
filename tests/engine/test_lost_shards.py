"""When one of the processes of a split model ends, all do; and what cannot be split starts none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.engine.types import WorkEnd
from cluster.errors import CuveeError, InvalidRequest
from deployments.processes import descendants

from .factories import ask, greedy, make_engine, make_ids, save_model

FIRST_SHARD = """
import sys, time
from pathlib import Path
from tests.engine.factories import make_engine
engine = make_engine(Path(sys.argv[1]), num_shards=2, num_threads=1)
print(*engine._runner._shards.pids, flush=True)
time.sleep(60)
"""


def test_a_shard_that_dies_ends_the_replica_and_is_told_once(llama_folder: Path) -> None:
    lost, others = threading.Semaphore(0), descendants()
    engine = make_engine(llama_folder, num_shards=2, num_threads=1, on_lost=lost.release)
    assert engine.is_alive
    (shard,) = descendants() - others
    shard.kill()
    assert lost.acquire(timeout=5)
    assert not engine.is_alive
    result = ask(engine, engine.open(), 0, make_ids(5), greedy(2))
    assert result.end is WorkEnd.FAILED
    assert "lost a shard" in result.error
    engine.shut_down()
    assert not lost.acquire(blocking=False)
    assert descendants() <= others


def test_the_others_end_with_the_first_shard_however_it_dies(llama_folder: Path) -> None:
    command = [sys.executable, "-c", FIRST_SHARD, str(llama_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        others = [int(pid) for pid in first.stdout.readline().split()]
        assert len(others) == 1
        assert Path(f"/proc/{others[0]}").exists()
        os.kill(first.pid, signal.SIGKILL)
    while any(Path(f"/proc/{pid}").exists() for pid in others):  # the time limit is the clock
        time.sleep(0.05)


def test_what_cannot_be_split_is_refused_and_leaves_no_process(tmp_path: Path) -> None:
    save_model("gpt2", tmp_path)
    others = descendants()
    with pytest.raises(CuveeError, match="tp_plan"):
        make_engine(tmp_path, num_shards=2, num_threads=1)
    with pytest.raises(InvalidRequest, match="expected a size"):
        make_engine(tmp_path, num_shards=2, kv_memory_bytes=None)
    assert descendants() <= others
