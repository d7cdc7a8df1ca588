"""A decoder's forward pass in few kernels: for small models most of a step is what calls them.

transformers' Llama takes 37 kernels per layer and calls some twenty modules around them, this takes
24 and no module: matrices that read the same input are one, positions turn queries and keys at
once. No weight is held twice: the model's parameters become views of the joined ones, or are
released where those are packed.

It is for the family of pre-norm decoders with rotary positions and a gated MLP (Llama, SmolLM2,
Mistral, Qwen2, Qwen3); the check at load tells whether a model really is of it, and a model that
is not takes transformers' pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cluster.engine.attention import Call, PagedAttention
from cluster.engine.batch import Batch
from cluster.engine.product import Halves, Product, are_halves, product
from cluster.errors import Unsupported

_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}


@dataclass(slots=True)
class _Norm:
    """Root mean square over the last axis, of size n."""

    weight: Tensor  # [n]
    eps: float
    eps_there: Tensor  # []: the same, where the model is

    def __call__(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return nn.functional.rms_norm(x, (size,), self.weight, self.eps)
        # torch's own makes a dozen kernels of it on processors: 29 us a row where this takes 9
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self.eps_there, length, length, value=1 / size).rsqrt_()
        return x.mul(scale).mul_(self.weight)


@dataclass(slots=True)
class _Layer:
    call: Call
    parts: tuple[int, int, int]  # heads of queries, keys, values
    before_attention: _Norm
    qkv: Product
    head_norms: tuple[_Norm, _Norm] | None  # of queries and keys
    out: Product
    before_mlp: _Norm
    gate_up: Product
    activation: nn.Module
    down: Product


class FusedDecoder:
    """The model's pass over a packed batch."""

    def __init__(self, model: PreTrainedModel, calls: Mapping[int, Call]) -> None:
        """`calls`: what each layer asks of attention. Raises Unsupported for another family."""
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        _check(model, decoder)
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._dtype = model.dtype
        self._embeddings = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        self._norm = _norm(decoder.norm)
        self._packed: list[Halves] = []
        table = self._embeddings.weight.data  # may be the head's, too
        try:
            self._layers = [self._join(layer, calls[i]) for i, layer in enumerate(decoder.layers)]
            self._head = self._product([head])
        except Exception:
            self.restore()
            raise
        if isinstance(self._head, Halves):
            self._embeddings.weight.data = table.half() if are_halves(table) else table

    def __call__(self, batch: Batch, context: PagedAttention) -> tuple[Tensor, Tensor]:
        """Logits [L, V] of the tokens that want them, and the states [L, d] behind those."""
        x: Tensor = self._embeddings(batch.ids)[0].to(self._dtype)
        cos, sin = self._turns(x, batch.positions)
        for layer in self._layers:
            x = x + self._attend(layer, layer.before_attention(x), cos, sin, context)
            gate, up = layer.gate_up(layer.before_mlp(x)).chunk(2, dim=-1)
            x = x + layer.down(layer.activation(gate) * up)
        states = self._norm(x.index_select(0, batch.logit_tokens))
        return self._head(states), states

    @property
    def is_packed(self) -> bool:
        """Whether any of its weights lie in float16."""
        return bool(self._packed)

    def restore(self) -> None:
        """Give the model its weights again, for another way to run it; this one is at its end."""
        self._embeddings.weight.data = self._embeddings.weight.data.to(self._dtype)
        for packed in self._packed:
            packed.restore()

    def _turns(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [T, heads, D] that turn queries and keys and leave values."""
        cos, sin = (each[0, :, None] for each in self._rotary(x, positions))
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)  # as halves are swapped
        num_turned, num_heads = sum(self._layers[0].parts[:2]), sum(self._layers[0].parts)
        still = cos.new_ones(1, 1, 1).expand(len(x), num_heads - num_turned, cos.shape[-1])
        return (
            torch.cat([cos.expand(-1, num_turned, -1), still], dim=1),
            torch.cat([sin.expand(-1, num_turned, -1), still - 1], dim=1),
        )

    def _attend(
        self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor, context: PagedAttention
    ) -> Tensor:
        heads = layer.qkv(x).view(cos.shape)
        if layer.head_norms is not None:
            of_queries, of_keys = layer.head_norms
            queries, keys, values = heads.split_with_sizes(layer.parts, dim=1)
            heads = torch.cat([of_queries(queries), of_keys(keys), values], dim=1)
        heads = torch.addcmul(heads * cos, heads.roll(cos.shape[-1] // 2, -1), sin)
        queries, joined = heads[:, : layer.parts[0]], heads[:, layer.parts[0] :]
        return layer.out(context.attend_joined(layer.call, queries, joined).view(len(x), -1))

    def _join(self, layer: Any, call: Call) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        num_queries, num_keys = (
            matrix.out_features // attention.head_dim
            for matrix in (attention.q_proj, attention.k_proj)
        )
        head_norms = None
        if hasattr(attention, "q_norm"):
            head_norms = _norm(attention.q_norm), _norm(attention.k_norm)
        return _Layer(
            call=call,
            parts=(num_queries, num_keys, num_keys),
            before_attention=_norm(layer.input_layernorm),
            qkv=self._product([attention.q_proj, attention.k_proj, attention.v_proj]),
            head_norms=head_norms,
            out=self._product([attention.o_proj]),
            before_mlp=_norm(layer.post_attention_layernorm),
            gate_up=self._product([mlp.gate_proj, mlp.up_proj]),
            activation=mlp.act_fn,
            down=self._product([mlp.down_proj]),
        )

    def _product(self, layers: Sequence[nn.Linear]) -> Product:
        made = product(layers)
        if isinstance(made, Halves):
            self._packed.append(made)
        return made


def _check(model: PreTrainedModel, decoder: Any) -> None:
    """Raise unless the model has the family's parts and no others."""
    name = model.config.model_type
    parts = [type(part) for part in model.modules()]
    if name not in _MODEL_TYPES:
        raise Unsupported("NOT_FUSED", f"{name} is not of the family")
    if any(issubclass(part, nn.Linear) and part is not nn.Linear for part in parts):
        raise Unsupported("NOT_FUSED", "its linear layers are not plain ones")
    heads = {layer.self_attn.head_dim for layer in decoder.layers}
    widths = {layer.self_attn.q_proj.out_features for layer in decoder.layers}
    if len(heads) != 1 or len(widths) != 1 or heads.pop() % 2:
        raise Unsupported("NOT_FUSED", "its layers' heads differ, or cannot be halved")


def _norm(norm: Any) -> _Norm:
    eps = float(norm.variance_epsilon)
    return _Norm(norm.weight, eps, torch.tensor(eps, device=norm.weight.device))
