"""Fits a gate: the largest likelihood of what follows under the members as the gate weighs them.

That is a mixture of experts whose experts stand still; where an example names its member it is
plain classification. Part of the examples decides when to stop, another part is never looked at
until the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from cluster.blending.gates import Network
from cluster.errors import InvalidRequest
from cluster.gates.features import Row

NUM_EPOCHS = 400

_VALIDATION = 0.15  # of what is not held out
_PATIENCE = 40  # epochs without a better validation loss
_LEARNING_RATE = 0.02
_WEIGHT_DECAY = 0.05
_MIN_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Report:
    """What a gate is worth on examples that it never saw."""

    num_examples: int  # held out
    num_rows: int
    accuracy: float  # share of decisions for the member that was best there
    most_common: float  # the same for always the member that is best most often
    loss: float  # nats per decision
    constant_loss: float  # the same for the best weights that do not depend on what is read


@dataclass(slots=True)
class _Part:
    features: Tensor
    logliks: Tensor


def train(
    examples: Sequence[Sequence[Row]],
    *,
    num_hidden: int,
    held_out: float,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[Network, Report]:
    """A linear gate (num_hidden 0) or one with a hidden layer, and its worth.

    `examples` are split as they are, all rows of one to one side.
    """
    if len(examples) < _MIN_EXAMPLES:
        raise InvalidRequest(
            "TOO_FEW_EXAMPLES",
            f"got {len(examples)} examples; expected at least {_MIN_EXAMPLES}",
            field="data",
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    num_test = max(1, round(held_out * len(order)))
    num_validation = max(1, round(_VALIDATION * (len(order) - num_test)))
    test, validation, training = np.split(order, [num_test, num_test + num_validation])
    parts = [_part([examples[i] for i in chosen]) for chosen in (test, validation, training)]
    network = _fit(parts[2], parts[1], num_hidden, seed, progress)
    return network, _report(network, parts[0], parts[2], num_test)


def _part(examples: Sequence[Sequence[Row]]) -> _Part:
    rows = [row for example in examples for row in example]
    features = np.stack([row.features for row in rows])
    logliks = np.stack([row.logliks for row in rows])
    # Only differences between members count: the best one has likelihood 1.
    relative = logliks - logliks.max(axis=1, keepdims=True)
    return _Part(torch.from_numpy(features).float(), torch.from_numpy(relative).float())


def _fit(
    training: _Part,
    validation: _Part,
    num_hidden: int,
    seed: int,
    progress: Callable[[int], None],
) -> Network:
    torch.manual_seed(seed)
    mean = training.features.mean(dim=0)
    scale = training.features.std(dim=0, correction=0).clamp(min=1e-6)
    sizes = [len(mean), *([num_hidden] if num_hidden else []), training.logliks.shape[1]]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    hidden: list[nn.Module] = [m for layer in layers[:-1] for m in (layer, nn.ReLU())]
    model = nn.Sequential(*hidden, layers[-1])
    nn.init.zeros_(layers[-1].weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), float("inf"), 0
    for epoch in range(NUM_EPOCHS):
        loss = _loss(model((training.features - mean) / scale), training.logliks)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            now = float(_loss(model((validation.features - mean) / scale), validation.logliks))
        if now < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), now, epoch
        progress(epoch + 1)
        if epoch - best_epoch >= _PATIENCE:
            break
    model.load_state_dict(best)
    progress(NUM_EPOCHS)
    return _network(layers, mean, scale)


def _loss(logits: Tensor, logliks: Tensor) -> Tensor:
    """-log Σ gᵢ pᵢ, the mean over decisions."""
    return -(logits.log_softmax(dim=-1) + logliks).logsumexp(dim=-1).mean()


def _network(layers: Sequence[nn.Linear], mean: Tensor, scale: Tensor) -> Network:
    """Reads features as they are: their mean and scale go into the first layer."""
    found = []
    for number, layer in enumerate(layers):
        weight, bias = layer.weight.detach(), layer.bias.detach()
        if number == 0:
            weight = weight / scale
            bias = bias - weight @ mean
        found.append((weight.numpy(), bias.numpy()))
    return Network(found)


def _report(network: Network, test: _Part, training: _Part, num_examples: int) -> Report:
    logits = np.stack([network.logits(row) for row in test.features.numpy()])
    best = test.logliks.numpy().argmax(axis=1)
    common = np.bincount(training.logliks.numpy().argmax(axis=1)).argmax()
    constant = _best_constant(training.logliks)
    return Report(
        num_examples=num_examples,
        num_rows=len(best),
        accuracy=float((logits.argmax(axis=1) == best).mean()),
        most_common=float((best == common).mean()),
        loss=float(_loss(torch.from_numpy(logits).float(), test.logliks)),
        constant_loss=float(_loss(constant.expand_as(test.logliks), test.logliks)),
    )


def _best_constant(logliks: Tensor) -> Tensor:
    """Log-weights of the best fixed mixture, by expectation maximisation."""
    weights = torch.full((logliks.shape[1],), 1 / logliks.shape[1])
    for _ in range(100):
        weights = (weights.log() + logliks).softmax(dim=-1).mean(dim=0).clamp(min=1e-6)
    return weights.log()
