"""Random tiny models on the spot, and short ways to ask an engine for something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cluster.engine.engine import Engine
from cluster.engine.fake import FakeRunner
from cluster.engine.fused import FusedDecoder
from cluster.engine.loading import load_engine
from cluster.engine.runner import PagedRunner, use_paged_attention
from cluster.engine.types import Output, Sample, SamplingParams, TokenOutput, Verdict, Work, WorkEnd
from cluster.errors import Unsupported

VOCAB_SIZE = 97
GREEDY = SamplingParams(temperature=0.0)

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # spread enough that the greedy token is no matter of rounding
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_MIXED = {"sliding_window": 11, "layer_types": ["sliding_attention", "full_attention"]}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 11},
    "gemma2": {**_MIXED, "attn_logit_softcapping": 2.0},
    "gemma3_text": _MIXED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": _MOE,
    "gpt_oss": {**_MOE, "sliding_window": 11},
    "bloom": {"n_layer": 2, "n_head": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "n_groups": 1},
}


def make_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model of a transformers model type, always the same."""
    sizes = {**_SIZES, **_ARCHITECTURES.get(kind, {}), **changes}
    if kind == "gpt2":  # has its own names for these
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            del sizes[name]
        del sizes["max_position_embeddings"]
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    return model.eval()


def make_varlen_runner(model: PreTrainedModel, *, num_pages: int, page_size: int) -> PagedRunner:
    """The way of CUDA, in few kernels where the model allows that."""
    shape = use_paged_attention(model)
    try:
        fused = FusedDecoder(model, shape.calls)
    except Unsupported:
        fused = None
    return PagedRunner(
        model,
        shape,
        num_pages=num_pages,
        page_size=page_size,
        max_context=120,
        varlen=True,
        fused=fused,
    )


def save_model(kind: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """Write a random model to the folder, and give it for comparison."""
    model = make_model(kind, **changes)
    model.save_pretrained(folder)
    return model


def make_engine(folder: Path, **changes: Any) -> Engine:
    """An engine in float32 on the processor, with room for some thousand tokens."""
    settings = {"dtype": "float32", "device": "cpu", "kv_memory_bytes": 1 << 20, **changes}
    return load_engine(folder, **settings)


def make_fake_engine(
    *, max_batch_tokens: int = 64, min_shared_tokens: int = 1, **runner: Any
) -> Engine:
    """An engine over `FakeRunner`; the arguments are the runner's."""
    return Engine(
        FakeRunner(**runner),
        max_batch_tokens=max_batch_tokens,
        min_shared_tokens=min_shared_tokens,
    )


def make_ids(num: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Random token ids, always the same."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(vocab_size, (num,), generator=generator).tolist()
    return ids


def stop_after(num: int, last: Verdict = Verdict.KEEP_AND_STOP) -> Callable[[int], Verdict]:
    """A judge that keeps tokens and gives `last` as its verdict on the `num`-th."""
    num_judged = 0

    def judge(token: int) -> Verdict:
        nonlocal num_judged
        num_judged += 1
        return last if num_judged == num else Verdict.KEEP

    return judge


def greedy(num: int, **changes: Any) -> Sample:
    """Take the likeliest token `num` times."""
    return Sample(
        **{"params": GREEDY, "seed": 0, "first_position": 0, "judge": stop_after(num)} | changes
    )


@dataclass(slots=True)
class Result:
    """All that came of one work."""

    tokens: list[TokenOutput] = field(default_factory=list)
    end: WorkEnd | None = None
    error: str = ""
    num_passes: int = 0
    num_processed: int = 0
    num_cached: int = 0

    @property
    def ids(self) -> list[int]:
        return [token.token for token in self.tokens]

    def add(self, output: Output) -> None:
        assert self.end is None, "an output after the end"
        self.tokens += output.tokens
        self.end, self.error = output.end, output.error
        self.num_passes += output.num_passes
        self.num_processed += output.num_processed
        self.num_cached += output.num_cached


def step(engine: Engine, results: dict[int, Result], num_steps: int = 1) -> None:
    """Some steps, each checked, their outputs gathered by sequence."""
    for _ in range(num_steps):
        for output in engine.step():
            results.setdefault(output.sequence, Result()).add(output)
        engine.check_integrity()


def run(engine: Engine, works: Sequence[Work]) -> list[Result]:
    """Carry out works on different sequences, all at once, until each has its end."""
    results = {work.sequence: Result() for work in works}
    for work in works:
        engine.submit(work)
    for _ in range(10_000):
        if not engine.has_work():
            return [results[work.sequence] for work in works]
        step(engine, results)
    raise AssertionError("the engine does not come to an end")


def ask(engine: Engine, sequence: int, start: int, tokens: Sequence[int], want: Any) -> Result:
    """One work, carried out."""
    return run(engine, [Work(sequence, start, tokens, want)])[0]


@torch.inference_mode()
def plain_greedy(model: PreTrainedModel, ids: Sequence[int], num: int) -> list[int]:
    """What transformers' own `generate` says."""
    inputs = torch.tensor([ids], device=model.device)
    out = model.generate(inputs, max_new_tokens=num, do_sample=False)
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens


@torch.inference_mode()
def plain_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities [len(ids), vocab_size] after each token, from one plain pass."""
    inputs = torch.tensor([ids], device=model.device)
    return torch.log_softmax(model(inputs, use_cache=False).logits[0].float(), dim=-1)
