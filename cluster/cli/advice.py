"""What is allowed in a blend file but probably not meant; each warning says what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.cli.examine import BlendReport, MemberReport, Report
from cluster.cli.output import human_bytes, human_count
from cluster.models.reference import ModelKind

_COMMIT = re.compile(r"[0-9a-f]{40}")


def warnings_about(
    report: Report, *, num_cpus: int, memory_bytes: int | None, has_bfloat16: bool
) -> list[str]:
    """All warnings, each beginning with the field it is about; what there is, is this machine's."""
    found = [line for member in report.members.values() for line in _about_member(member)]
    if not has_bfloat16:
        found += [line for member in report.members.values() for line in _about_dtype(member)]
    found += [line for blend in report.blends.values() for line in _about_blend(blend, report)]
    used = {name for blend in report.spec.blends.values() for name in blend.members}
    found += [
        f"members.{name}: no blend uses it, yet its replicas start"
        for name in report.spec.members
        if name not in used
    ]
    wanted = sum(
        member.resources.num_cpus * member.min_replicas for member in report.spec.members.values()
    )
    if wanted > num_cpus:
        found.append(
            f"resources: replicas ask for {wanted:g} CPUs, this machine has {num_cpus}; lower "
            "num_cpus, or run on a cluster"
        )
    needed = sum(
        member.need.total_bytes * member.spec.min_replicas
        for member in report.members.values()
        if member.need and member.device == "cpu"
    )
    if memory_bytes is not None and needed > memory_bytes:
        found.append(
            f"kv_memory: replicas need {human_bytes(needed)}, this machine has "
            f"{human_bytes(memory_bytes)} free; lower kv_memory or replicas"
        )
    return found


def _about_member(member: MemberReport) -> Iterator[str]:
    where, spec, facts = f"members.{member.name}", member.spec, member.facts
    is_on_hub = spec.reference is not None and spec.reference.kind is ModelKind.HUB
    if is_on_hub and not _COMMIT.fullmatch(spec.revision or ""):
        yield f"{where}.revision: not pinned to a commit, so its weights may change under you"
    if spec.max_context and spec.max_context > facts.max_context:
        yield (
            f"{where}.max_context: {spec.max_context} is more than the model's own "
            f"{facts.max_context}, which is used"
        )
    if not facts.has_chat_template:
        yield f"{where}: no chat template; send its blends plain prompts instead of messages"
    if member.need:
        room = member.need.kv_bytes // facts.kv_bytes_per_token(spec.cached_dtype)
        if room < member.context:
            full = human_bytes(member.context * facts.kv_bytes_per_token(spec.cached_dtype))
            yield (
                f"{where}.kv_memory: holds {room} tokens, less than the context of "
                f"{member.context}; longer generations need {full}"
            )


def _about_dtype(member: MemberReport) -> Iterator[str]:
    """Where bfloat16 is emulated, its numbers are read fastest as float32's packed in float16."""
    own = member.facts.default_dtype
    if member.device == "cpu" and member.dtype == own == "bfloat16":
        yield (
            f"members.{member.name}.dtype: the checkpoint's bfloat16, for which this processor has "
            "no instructions; float32 is faster here and nearer to the model"
        )


def _about_drafts(blend: BlendReport, report: Report, where: str) -> Iterator[str]:
    """A drafter that costs as much as those it drafts for saves nothing."""
    if blend.spec.speculation is None:
        return
    sizes = {name: report.members[name].facts.sizes.num_parameters for name in blend.spec.members}
    drafter = blend.spec.speculation.draft
    largest = max(size for name, size in sizes.items() if name != drafter)
    if sizes[drafter] > largest / 2:
        yield (
            f"{where}.speculate.draft: {drafter} has {human_count(sizes[drafter])} parameters, "
            f"the largest other {human_count(largest)}; drafts pay where it is much smaller"
        )


def _about_blend(blend: BlendReport, report: Report) -> Iterator[str]:
    where = f"blends.{blend.name}"
    for name, weight in blend.spec.members.items():
        drafts = blend.spec.speculation is not None and blend.spec.speculation.draft == name
        if weight == 0 and not drafts:
            yield f"{where}.members.{name}: weight 0, so it never speaks; remove it"
    yield from _about_drafts(blend, report, where)
    if blend.spec.by_bytes or len(blend.vocabularies) == 1:
        return
    if blend.span == "token" or isinstance(blend.span, int):
        yield f"{where}.span: members' tokens differ, so words are cut apart; word reads better"
    for name in blend.spec.members:
        if not report.members[name].reads_faithfully:
            yield (
                f"{where}.members.{name}: its tokenizer changes text (case, accents or rare "
                "characters), so it reads what others said not quite as they said it"
            )
