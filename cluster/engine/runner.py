"""A transformers model over a pool of key-value pages: any mix of sequences in one forward pass.

Works for every architecture that attends through transformers' attention interface and carries no
other state from token to token; `cluster.engine.check` tells which those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cluster.engine.attention import ATTENTION, Call, PagedAttention, attending
from cluster.engine.base import Chunk, vocab_size_of
from cluster.engine.batch import Batch, build_batch
from cluster.engine.fused import FusedDecoder
from cluster.engine.graphs import MAX_TOKENS, Capture, Graphs, Outputs
from cluster.engine.pool import Copy
from cluster.engine.rows import FlatRows, HeadRows, LayerShape, Rows
from cluster.errors import Unsupported

_MAX_FLASH_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class PagedShape:
    """What a model keeps per token, learnt by watching its attention layers."""

    layers: dict[int, LayerShape]
    calls: dict[int, Call]  # what each layer asks of attention
    plain: bool  # no softcap, no sinks, keys as wide as values
    is_exact: bool = True  # kept in the numbers that the model computes with

    def kept_as(self, dtype: torch.dtype) -> PagedShape:
        """The same, with keys and values rounded to `dtype` where they are kept."""
        layers = {i: replace(layer, dtype=dtype) for i, layer in self.layers.items()}
        return replace(self, layers=layers, is_exact=self.is_exact and layers == self.layers)

    def page_bytes(self, page_size: int) -> int:
        return page_size * sum(layer.row_bytes for layer in self.layers.values())

    def suits_varlen(self) -> bool:
        """Whether the flash kernel can carry out every layer's attention."""
        return (
            self.plain
            and self.is_exact
            and all(
                layer.dtype in (torch.float16, torch.bfloat16)
                and layer.key_dim <= _MAX_FLASH_HEAD_DIM
                and layer.key_dim % 8 == 0
                for layer in self.layers.values()
            )
        )


@dataclass(slots=True)
class _Recorder:
    """Learns each layer's shape from one pass of any length; computes nothing."""

    layers: dict[int, LayerShape] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    plain: bool = True  # no softcap, no sinks, keys as wide as values

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = LayerShape(key.shape[1], key.shape[2], value.shape[2], key.dtype)
        self.layers[call.layer] = shape
        self.calls[call.layer] = call
        if call.softcap is not None or call.sinks is not None or key.shape[2] != value.shape[2]:
            self.plain = False
        return query.new_zeros(1, query.shape[0], query.shape[1], value.shape[2])


def use_paged_attention(model: PreTrainedModel) -> PagedShape:
    """Point the model at our attention function and learn its layers' shapes from a tiny pass."""
    model.set_attn_implementation(ATTENTION)
    recorder = _Recorder()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    with torch.inference_mode(), attending(recorder):
        model(input_ids=ids, position_ids=positions, use_cache=False)
    if not recorder.layers:
        name = type(model).__name__
        raise Unsupported("ATTENTION_NOT_PAGED", f"{name} does not use the attention interface")
    return PagedShape(recorder.layers, recorder.calls, recorder.plain)


class PagedRunner:
    """Carries out `Runner` with rows in pages."""

    shares_rows = True
    is_alive = True

    def __init__(
        self,
        model: PreTrainedModel,
        shape: PagedShape,
        *,
        num_pages: int,
        page_size: int,
        max_context: int,
        varlen: bool,
        fused: FusedDecoder | None = None,
    ) -> None:
        self.vocab_size = vocab_size_of(model)
        self.max_context = max_context
        self.num_pages = num_pages
        self.page_size = page_size
        self.states: Tensor | None = None
        self._model = model
        self._device = model.device
        self._varlen = varlen
        self._fused = fused
        self._graphs: Graphs | None = None
        head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        head.register_forward_pre_hook(self._keep_states)
        kind, num_spare = (FlatRows, 1) if varlen else (HeadRows, 0)  # for padding in graphs
        self._rows: dict[int, Rows] = {
            layer: kind(num_pages + num_spare, page_size, kept, model.device)
            for layer, kept in shape.layers.items()
        }

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        if self._graphs is not None and self._graphs.takes(chunks):
            logits, self.states = self._graphs(chunks)
        else:
            batch = build_batch(chunks, self.page_size, self._device, varlen=self._varlen)
            logits, self.states = self._run(batch)
        return logits

    @torch.inference_mode()
    def use_graphs(self, capture: Capture, max_tokens: int = MAX_TOKENS) -> Sequence[int]:
        """Have passes of up to so many tokens captured, and replayed from now on; their sizes."""
        assert self._varlen, "the gathered way's shapes depend on the sequences' lengths"
        self._graphs = Graphs(
            self._run,
            capture,
            page_size=self.page_size,
            max_pages=min(-(-self.max_context // self.page_size), self.num_pages),
            spare_page=self.num_pages,
            device=self._device,
            max_tokens=max_tokens,
        )
        return self._graphs.sizes

    def drop_graphs(self) -> None:
        """Run every pass as it comes again."""
        self._graphs = None

    def _run(self, batch: Batch) -> Outputs:
        """The pass itself; the varlen way waits for nothing on the device."""
        attention = PagedAttention(self._rows, self.page_size, batch)
        if self._fused is not None:
            return self._fused(batch, attention)
        with attending(attention):
            output = self._model(
                input_ids=batch.ids,
                position_ids=batch.positions,
                use_cache=False,
                # an index tensor: an int would also cut tokens inside layers that share keys
                logits_to_keep=batch.logit_tokens,
            )
        assert self.states is not None
        return output.logits[0], self.states

    def _keep_states(self, head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.states = inputs[0][0]

    @torch.inference_mode()
    def copy(self, copies: Sequence[Copy]) -> None:
        for rows in self._rows.values():
            for copy in copies:
                rows.copy(copy)

    def truncate(self, sequence: int, num_tokens: int, next_id: int) -> int:
        """Rows beyond are simply overwritten."""
        return num_tokens

    def drop(self, sequence: int) -> None:
        """Everything a sequence has lies in its pages."""

    def close(self) -> None:
        """Nothing was started."""
