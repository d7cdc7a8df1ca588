"""What the process of a shard other than the first does: load its part, run every pass it is told.

    python -m cluster.engine.shard FD

FD is its end of a pipe; when the other end closes, the process ends, whatever it is doing.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch

from cluster.engine.loading import load_shard
from cluster.engine.shards import END, READY, Message, Pass, Start, join


def serve(pipe: Connection) -> None:
    """Run until the first shard's process ends, or until something here fails: say what."""
    messages: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, messages), daemon=True).start()
    try:
        start = messages.get()
        assert isinstance(start, Start)
        if start.loading.num_threads is not None:
            torch.set_num_threads(start.loading.num_threads)
        pipe.send_bytes(READY.encode())
        join(start)
        runner = load_shard(start.loading, start.device, start.num_shards)
        while isinstance(message := messages.get(), Pass):
            if message.copies:
                runner.copy(message.copies)
            if message.chunks:
                runner.forward(message.chunks)
    except Exception as error:
        pipe.send_bytes(f"{type(error).__name__}: {error}".encode())
        os._exit(1)  # the others may be waiting within a collective: there is no orderly end


def _receive(pipe: Connection, messages: SimpleQueue[Message]) -> None:
    try:
        while (told := pipe.recv_bytes()) != END:
            messages.put(pickle.loads(told))
    except (EOFError, ConnectionError):
        pass
    os._exit(0)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
