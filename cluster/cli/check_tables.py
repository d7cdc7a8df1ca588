"""How `cuvee check` shows people what a blend file means: tables, blends, warnings, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sized
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cluster.cli.examine import BlendReport, MemberReport, Report
from cluster.cli.output import human_bytes, human_count, plain_number, print_line, print_table
from cluster.models.reference import ModelKind
from cluster.spec import (
    ChooseSpec,
    ClusterSpec,
    EnsembleSpec,
    FuseSpec,
    MixtureSpec,
    ProposingSpec,
    RouteSpec,
    SpeculateSpec,
)


def print_report(console: Console, file: Path, report: Report, warnings: list[str]) -> None:
    """All of it, the verdict last."""
    members = list(report.members.values())
    if members:
        _print_members(console, members, file)
        _print_replicas(console, members)
        _print_rankers(console, report.spec)
        print_line(console, f"{_cluster_words(members)}\n")
    for blend in report.blends.values():
        _print_blend(console, blend, is_default=blend.name == report.spec.default_blend)
    for warning in warnings:
        print_line(console, Text.assemble(("! ", "bold yellow"), warning))
    for field, error in report.failures.items():
        print_line(console, Text.assemble(("✗ ", "bold red"), f"{field}: {error.message}"))
    if warnings or report.failures:
        print_line(console)
    print_line(console, _verdict(file, report))


def _verdict(file: Path, report: Report) -> Text:
    if report.failures:
        return Text(f"✗ {file}: {count_of(report.failures, 'problem')}", "bold red")
    blends, members = count_of(report.spec.blends, "blend"), count_of(report.spec.members, "member")
    return Text(f"✓ {file}: {blends} of {members}", "bold green")


def count_of(things: Sized, noun: str) -> str:
    """Such as `1 blend`."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _print_members(console: Console, members: list[MemberReport], file: Path) -> None:
    rows = [
        (
            member.name,
            _short_model(member, file),
            human_count(member.facts.sizes.num_parameters),
            member.dtype,
            f"{member.context:,}",
            f"{member.facts.vocab_size:,} {member.vocabulary}",
            "yes" if member.facts.has_chat_template else "no",
        )
        for member in members
    ]
    columns = ("member", "model", "params", "dtype", "context", "vocabulary", "chat")
    print_table(console, columns, rows, right=("params", "context", "vocabulary"))


def _short_model(member: MemberReport, file: Path) -> str:
    """Folders as the file most likely writes them, since the spec holds them in full."""
    here = file.absolute().parent
    reference = member.spec.reference
    is_folder = reference is not None and reference.kind is ModelKind.FOLDER
    if is_folder and member.facts.folder.is_relative_to(here):
        return f"./{member.facts.folder.relative_to(here)}"
    return member.spec.model_name


def _print_replicas(console: Console, members: list[MemberReport]) -> None:
    """What one replica of each member takes, and how many generations it holds at once."""
    rows = [
        (
            member.name,
            human_bytes(member.facts.weight_bytes(member.spec.dtype)),
            _kv_words(member),
            human_bytes(member.need.process_bytes) if member.need else "",
            human_bytes(member.need.total_bytes) if member.need else "at load",
            plain_number(member.spec.resources.num_cpus),
            plain_number(member.spec.resources.num_gpus),
            f"{member.num_generations:,}" if member.num_generations else "at load",
            _range(member.spec.min_replicas, member.spec.max_replicas),
        )
        for member in members
    ]
    amounts = ("weights", "kv", "process", "memory", "cpus", "gpus", "at once", "replicas")
    print_table(console, ("replica of", *amounts), rows, right=amounts)
    print_line(console, Text("at once: generations of full context that fit in the KV", "dim"))
    if any(member.spec.kv_memory_bytes is None for member in members):
        words = "~: kv_memory is not set, so it is decided at load; here from what is free now"
        print_line(console, Text(words, "dim"))


def _print_rankers(console: Console, spec: ClusterSpec) -> None:
    rows = [
        (
            name,
            ranker.kind,
            ranker.model_name,
            plain_number(ranker.resources.num_cpus),
            plain_number(ranker.resources.num_gpus),
            _range(ranker.min_replicas, ranker.max_replicas),
        )
        for name, ranker in spec.rankers.items()
    ]
    if rows:
        amounts = ("cpus", "gpus", "replicas")
        print_table(console, ("ranker", "kind", "model", *amounts), rows, right=amounts)


def _kv_words(member: MemberReport) -> str:
    if member.need is None:
        return "at load"
    return ("" if member.spec.kv_memory_bytes else "~") + human_bytes(member.need.kv_bytes)


def _cluster_words(members: list[MemberReport]) -> str:
    """What all replicas take together, from the smallest cluster to the largest."""

    def total(amount: Callable[[MemberReport], float]) -> tuple[float, float]:
        low = sum(amount(member) * member.spec.min_replicas for member in members)
        high = sum(amount(member) * member.spec.max_replicas for member in members)
        return round(low, 6), round(high, 6)

    low_bytes, high_bytes = total(lambda m: m.need.total_bytes if m.need else 0)
    memory = human_bytes(int(low_bytes))
    if high_bytes > low_bytes:
        memory = f"{memory} to {human_bytes(int(high_bytes))}"
    if not all(member.need for member in members):
        memory = f"at least {memory}"
    words = [
        f"cluster: {_range(*total(lambda m: 1))} replicas",
        f"{memory} of memory",
        f"{_range(*total(lambda m: m.spec.resources.num_cpus))} CPUs",
        f"{_range(*total(lambda m: m.spec.resources.num_gpus))} GPUs",
    ]
    return ", ".join(word for word in words if not word.startswith("–"))


def _range(low: float, high: float) -> str:
    return plain_number(low) if low == high else f"{low:g} to {high:g}"


def _print_blend(console: Console, blend: BlendReport, *, is_default: bool) -> None:
    spec = blend.spec
    heading = Text.assemble((blend.name, "bold"), " (default)" if is_default else "")
    heading.append(f"  {_method_words(blend)}")
    heading.append(f"  revision {blend.revision}", "dim")
    print_line(console, heading)
    if spec.description:
        print_line(console, f"  {spec.description}")
    width = max(map(len, spec.members))
    for name, share in spec.weights.items():
        bar = "█" * round(share * 30)
        print_line(console, Text.assemble(f"  {name:<{width}}  {share:>6.1%}  ", (bar, "cyan")))
    for name, role in spec.roles.items():
        print_line(console, f"  {name:<{width}}  {role}")
    if spec.parameters:
        numbers = ", ".join(f"{name} {value:g}" for name, value in spec.parameters.items())
        print_line(console, f"  {numbers}")
    print_line(console, f"  {_exchange_words(blend)}")
    if spec.speculation is not None:
        print_line(console, f"  {_draft_words(spec.speculation)}")
    chosen = spec.sampling.model_dump(exclude_unset=True)
    if chosen:
        words = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
        print_line(console, f"  sampling: {words}")
    print_line(console)


def _method_words(blend: BlendReport) -> str:
    spec = blend.spec
    if isinstance(spec, EnsembleSpec):
        told = "exact" if spec.exact else "of likeliest tokens"
        return f"{spec.method}, {spec.rule}, {'by bytes' if spec.by_bytes else told}"
    if isinstance(spec, ChooseSpec):
        return f"{spec.method} by {spec.rank}"
    if isinstance(spec, FuseSpec):
        return f"{spec.method}, {f'top {spec.top} by {spec.rank}' if spec.top else 'all'}"
    if not isinstance(spec, MixtureSpec | RouteSpec):
        return f"{spec.method}{', by bytes' if spec.by_bytes else ''}"
    by = f" by {spec.rule_name}" if isinstance(spec, RouteSpec) else ""
    words = f"{blend.span} tokens" if isinstance(blend.span, int) else str(blend.span)
    return f"{spec.method}{by}, span {words}{' (by default)' if spec.span is None else ''}"


def _exchange_words(blend: BlendReport) -> str:
    if isinstance(blend.spec, ProposingSpec):
        return "each member writes whole replies: nothing is exchanged on the way"
    if len(blend.vocabularies) == 1:
        return "one vocabulary: token ids are exchanged, exactly"
    groups = "; ".join(", ".join(names) for names in blend.vocabularies.values())
    told = "each byte is drawn by all" if blend.spec.by_bytes else "bytes are exchanged"
    return f"{len(blend.vocabularies)} vocabularies ({groups}): {told}"


def _draft_words(speculation: SpeculateSpec) -> str:
    most = f"{speculation.max_tokens} token{'' if speculation.max_tokens == 1 else 's'}"
    how = f"always {most}" if speculation.always else f"up to {most}, as far as it pays"
    return f"{speculation.draft} drafts ahead for the others: {how}; the text is the same"
