"""Short passes captured once and replayed: on a GPU, calling kernels is most of a small step.

A pass of up to `MAX_TOKENS` tokens, decodes and extends in any mix, is padded to 1, 2, 4 ...
tokens and replayed by the graph of that size. A graph reads one buffer of fixed length, the same
parts that any pass of the varlen way is made of; all of it is written for every pass, so nothing
stays from the one before. Padding tokens are sequences of one token each on a page that nobody
owns: what they compute is finite and never looked at. Sequences of no tokens fill up the tables.

What is captured is the runner's own pass. This module does not know how it is computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cluster.engine.base import Chunk
from cluster.engine.batch import Batch, move, varlen_batch, varlen_parts

MAX_TOKENS = 256

Outputs = tuple[Tensor, Tensor]  # logits [L, V], and the states [L, d] behind them
Replay = Callable[[], Outputs]  # does it again, into the same memory
Capture = Callable[[Callable[[], Outputs]], Replay]


class Graphs:
    """The passes of a runner that are short enough."""

    def __init__(
        self,
        run: Callable[[Batch], Outputs],
        capture: Capture,
        *,
        page_size: int,
        max_pages: int,
        spare_page: int,
        device: torch.device,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """`max_pages`: of one sequence. `spare_page`: written to and read by padding alone."""
        self._page_size = page_size
        self._max_pages = max_pages
        self._spare_page = spare_page
        self._device = device
        self.sizes = [1 << i for i in range(max_tokens.bit_length())]  # tokens, padded to
        self._graphs: dict[int, tuple[Tensor, Replay]] = {}  # what each reads, by size
        for size in reversed(self.sizes):  # the largest first: the others fit into its memory
            self._graphs[size] = self._make(size, run, capture)

    def takes(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a pass of these chunks is replayed."""
        return sum(len(chunk.ids) for chunk in chunks) <= self.sizes[-1]

    def __call__(self, chunks: Sequence[Chunk]) -> Outputs:
        """Logits and states of the pass, good until the next one."""
        parts = varlen_parts(chunks, self._page_size, self._max_pages)
        size = 1 << (len(parts[0]) - 1).bit_length()
        num_logits = len(parts[3])
        inputs, replay = self._graphs[size]
        move(self._padded(parts, size), self._device, into=inputs)
        logits, states = replay()
        return logits[:num_logits], states[:num_logits]

    def _make(
        self, size: int, run: Callable[[Batch], Outputs], capture: Capture
    ) -> tuple[Tensor, Replay]:
        parts = self._padded(varlen_parts([], self._page_size, self._max_pages), size)
        lengths = [len(part) for part in parts]
        inputs = torch.empty(sum(lengths), dtype=torch.int64, device=self._device)
        static = move(parts, self._device, into=inputs)
        max_keys = self._max_pages * self._page_size
        return inputs, capture(lambda: run(varlen_batch(static, size, max_keys)))

    def _padded(self, parts: list[array[int]], size: int) -> list[array[int]]:
        """As many tokens, wanted logits and sequences."""
        ids, positions, slots, logit_tokens, cu_queries, cu_keys, num_keys, pages = parts
        num_spare = size - len(ids)
        num_empty = size - len(num_keys) - num_spare
        ids.extend([0] * num_spare)
        positions.extend([0] * num_spare)
        slots.extend([self._spare_page * self._page_size] * num_spare)
        logit_tokens.extend([0] * (size - len(logit_tokens)))
        for ends in (cu_queries, cu_keys):
            ends.extend(range(ends[-1] + 1, ends[-1] + 1 + num_spare))
            ends.extend(ends[-1:] * num_empty)
        num_keys.extend([1] * num_spare + [0] * num_empty)
        row = array("q", [self._spare_page] + [0] * (self._max_pages - 1))
        pages.extend(row * (num_spare + num_empty))
        assert len(cu_queries) == size + 1
        assert cu_queries[-1] == size
        return parts


class CudaCapture:
    """Captures in CUDA graphs. They share memory: a replay overwrites what any other one gave."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, run: Callable[[], Outputs]) -> Replay:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):  # what kernels set up at their first calls cannot be captured
                run()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other engines' threads may be at work
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            outputs = run()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay
