"""Train the embedded models from scratch: one base, three styles tuned from it, one outsider.

    python -m cluster.models.train --corpus corpus --out cluster/models/embedded

`corpus` holds `austen.txt`, `kjv.txt` and `bierce.txt`; `cluster.models.corpus` makes them from
the Debian packages r-cran-janeaustenr, bible-kjv, bible-kjv-text and dict-devil, and its `--help`
says how to get those. The end of each text is held out and written beside the models.

The styles start from the *saved* base (same shapes, same bfloat16 rounding), so every rule that
merges or blends relatives applies to them; `tiny-bytes` shares neither tokenizer nor shape, for
blending across tokenizers. One seed decides everything; a different machine still differs in the
last bits. `--only` trains a part, so that several processes can share one GPU after the base.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout
from transformers import AutoModelForCausalLM, GenerationConfig

from cluster.models.byte_level import END_ID, bpe_tokenizer, byte_tokenizer
from cluster.models.corpus import STYLES, Split, read_paragraphs, split, write_paragraphs
from cluster.models.held_out import encode, surprise
from cluster.models.muon import Muon
from cluster.models.recipes import BPE_ENTRIES, CONTEXT, RECIPES, SPECIAL_IDS, Recipe, config_of

_WARM_UP, _DECAY = 0.03, 0.6  # shares of a run


def _add_dropout(model: Any, share: float) -> None:
    """While training, drop some of what attention and MLP add; nothing of this is saved."""

    def drop(module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return dropout(output, share, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)


class Trainer:
    """One model, its data and its optimizers; `run` trains it and leaves the best weights in it."""

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        streams: Mapping[str, Tensor],
        validation: Mapping[str, list[int]],
        seed: int,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.streams = streams
        self.validation = validation
        self.random = np.random.default_rng(seed)
        inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        matrices = {id(p) for p in inner}
        outer = [p for p in model.parameters() if id(p) not in matrices]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(inner, lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
            torch.optim.AdamW(
                outer, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            ),
        )
        if recipe.dropout:
            _add_dropout(model, recipe.dropout)
        self.forward: Any = torch.compile(model, dynamic=False)

    def run(self, label: str) -> None:
        """Short sequences, then long ones; ten looks at validation, of which the best is kept."""
        num_short = self.recipe.num_short_steps
        num_steps = num_short + self.recipe.num_long_steps
        best_nats, best = float("inf"), self.model.state_dict()
        started_s = time.perf_counter()
        for step in range(num_steps):
            self._set_rate(step / num_steps)
            loss = self._step(CONTEXT // 4 if step < num_short else CONTEXT)
            if (step + 1) % max(1, num_steps // 10) == 0 or step + 1 == num_steps:
                nats = self._validate()
                elapsed_s = time.perf_counter() - started_s
                print(
                    f"{label}: step {step + 1}/{num_steps} loss {loss:.3f} validation {nats:.4f}"
                    f" {elapsed_s:.0f} s",
                    flush=True,
                )
                if nats < best_nats:
                    best_nats, best = nats, copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(best)

    def _set_rate(self, progress: float) -> None:
        factor = min(1.0, progress / _WARM_UP + 0.01, (1 - progress) / _DECAY)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * self.recipe.learning_rate

    def _step(self, length: int) -> float:
        batch = self._batch(length)
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.is_cuda):
            logits = self.forward(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    def _batch(self, length: int) -> Tensor:
        """Stretches from random places, so that a paragraph may begin anywhere in the context."""
        styles = self.random.choice(
            list(self.recipe.mix),
            self.recipe.tokens_per_step // length,
            p=list(self.recipe.mix.values()),
        )
        rows = []
        for style in styles:
            stream = self.streams[str(style)]
            start = int(self.random.integers(0, len(stream) - length))
            rows.append(stream[start : start + length + 1])
        return torch.stack(rows).to(self.model.device)

    def _validate(self) -> float:
        """Nats per token, weighted as the training mix is."""
        self.model.eval()
        nats = 0.0
        for style, share in self.recipe.mix.items():
            ids = self.validation[style]
            nats += share * surprise(self.model, ids, END_ID, stride=CONTEXT) / len(ids)
        self.model.train()
        return nats


def train(name: str, splits: Mapping[str, Split], out: Path, device: str, seed: int) -> None:
    """Train one model and save it as an ordinary Hugging Face folder."""
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    if name == "tiny-bytes":
        tokenizer = byte_tokenizer(CONTEXT)
    else:
        tokenizer = bpe_tokenizer(
            [text for part in splits.values() for text in part.train], BPE_ENTRIES, CONTEXT
        )
    if recipe.ancestor is None:
        model = AutoModelForCausalLM.from_config(config_of(name))  # type: ignore[no-untyped-call]
    else:
        model = AutoModelForCausalLM.from_pretrained(out / recipe.ancestor, dtype=torch.float32)
    streams = {style: torch.tensor(encode(tokenizer, part.train)) for style, part in splits.items()}
    validation = {style: encode(tokenizer, part.validation) for style, part in splits.items()}
    model.to(device).train()
    Trainer(model, recipe, streams, validation, seed).run(name)
    model.to("cpu", torch.bfloat16)
    model.generation_config = GenerationConfig(**SPECIAL_IDS)  # type: ignore[no-untyped-call]
    model.save_pretrained(out / name)
    tokenizer.save_pretrained(out / name)


def main() -> None:
    """Command line: corpus in, model folders and held-out texts out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder with the three .txt files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model folders")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    splits = {style: split(read_paragraphs(arguments.corpus / f"{style}.txt")) for style in STYLES}
    (arguments.out / "held_out").mkdir(parents=True, exist_ok=True)
    for style, part in splits.items():
        write_paragraphs(arguments.out / "held_out" / f"{style}.txt", part.held_out)
    for name in arguments.only:
        train(name, splits, arguments.out, device, arguments.seed)


if __name__ == "__main__":
    main()
