"""`cuvee check FILE`: what a blend file means, whether it fits, and what looks wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cluster.cli.advice import warnings_about
from cluster.cli.check_tables import count_of, print_report
from cluster.cli.examine import BlendReport, MemberReport, Report, examine
from cluster.cli.output import print_json, print_line, working
from cluster.errors import SpecError
from cluster.models.machine import free_memory_bytes, has_bfloat16, num_cpus
from cluster.spec import load_spec


def check(file: Path, as_json: bool, console: Console) -> int:
    """Examine a blend file without loading weights or asking the hub; 0 when it can be served."""
    try:
        spec = load_spec(file)
    except SpecError as error:
        _print_problems(console, file, error.message.splitlines(), as_json=as_json)
        return 1
    with working(f"checking {file}") as progress:
        report = examine(spec, progress)
        warnings = warnings_about(
            report,
            num_cpus=num_cpus(),
            memory_bytes=free_memory_bytes("cpu"),
            has_bfloat16=has_bfloat16(),
        )
    if as_json:
        print_json(console, {"file": str(file), **_as_mapping(report, warnings)})
    else:
        print_report(console, file, report, warnings)
    return 1 if report.failures else 0


def _print_problems(console: Console, file: Path, problems: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(console, {"file": str(file), "ok": False, "errors": problems})
        return
    for problem in problems:
        print_line(console, problem)
    print_line(console, Text(f"✗ {file}: {count_of(problems, 'problem')}", "bold red"))


def _as_mapping(report: Report, warnings: list[str]) -> dict[str, Any]:
    return {
        "ok": not report.failures,
        "errors": [f"{field}: {e.message}" for field, e in report.failures.items()],
        "warnings": warnings,
        "default_blend": report.spec.default_blend,
        "members": {name: _member_mapping(member) for name, member in report.members.items()},
        "rankers": {
            name: {"kind": ranker.kind, "model": ranker.model_name}
            for name, ranker in report.spec.rankers.items()
        },
        "blends": {name: _blend_mapping(blend) for name, blend in report.blends.items()},
    }


def _member_mapping(member: MemberReport) -> dict[str, Any]:
    facts, need, resources = member.facts, member.need, member.spec.resources
    return {
        "model": member.spec.model_name,
        "folder": str(facts.folder) if facts.folder.is_dir() else None,  # not built yet
        "architecture": facts.architecture,
        "num_parameters": facts.sizes.num_parameters,
        "dtype": member.dtype,
        "device": member.device,
        "max_context": member.context,
        "vocab_size": facts.vocab_size,
        "vocabulary": member.vocabulary,
        "has_chat_template": facts.has_chat_template,
        "weights_bytes": facts.weight_bytes(member.spec.dtype),
        "kv_bytes": need.kv_bytes if need else None,
        "total_bytes": need.total_bytes if need else None,
        "num_full_generations": member.num_generations,
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "num_shards": member.spec.num_shards,
        "min_replicas": member.spec.min_replicas,
        "max_replicas": member.spec.max_replicas,
    }


def _blend_mapping(blend: BlendReport) -> dict[str, Any]:
    return {
        "method": blend.spec.method,
        "span": blend.span,
        "revision": blend.revision,
        "weights": dict(blend.spec.weights),
        "roles": dict(blend.spec.roles),
        "parameters": blend.spec.parameters,
        "speculate": blend.spec.speculation and blend.spec.speculation.model_dump(mode="json"),
        "one_vocabulary": len(blend.vocabularies) == 1,
        "sampling": blend.spec.sampling.model_dump(mode="json"),
        "description": blend.spec.description,
    }
