"""What a blend file will mean on a cluster, found out without loading any weights.

All that `cuvee check` shows is computed here; how it looks is `cluster.cli.check_tables`' business.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import CuveeError
from cluster.gates.file import gate_of
from cluster.merging.cache import folder_or_sketch
from cluster.models.facts import (
    MemoryNeed,
    ModelFacts,
    check_split,
    default_kv_memory,
    max_leases,
    memory_need,
    read_facts,
    read_vocabulary,
)
from cluster.models.machine import free_memory_bytes
from cluster.rankers.facts import read_ranker_config
from cluster.spec import BlendSpec, ClusterSpec, MemberSpec, Span
from cluster.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class MemberReport:
    """One member: its model's facts and what one replica of it takes and gives."""

    name: str
    spec: MemberSpec
    facts: ModelFacts
    vocabulary: str  # a letter; members with the same one share their vocabulary
    reads_faithfully: bool  # its tokenizer keeps every byte of a text
    device: str
    need: MemoryNeed | None  # None: decided at load, on hardware that is not here
    num_generations: int | None  # of full length, at once; None with `need`

    @property
    def dtype(self) -> str:
        return self.facts.dtype(self.spec.dtype)

    @property
    def context(self) -> int:
        return self.facts.context(self.spec.max_context)


@dataclass(frozen=True, slots=True)
class BlendReport:
    """One blend, with everything resolved that its file leaves open."""

    name: str
    spec: BlendSpec
    span: Span
    revision: str
    vocabularies: Mapping[str, tuple[str, ...]]  # letter to the names of its members


@dataclass(frozen=True, slots=True)
class Report:
    """A whole blend file; `failures` are what cannot be served, by field, and why."""

    spec: ClusterSpec
    members: Mapping[str, MemberReport]
    blends: Mapping[str, BlendReport]
    failures: Mapping[str, CuveeError]


def examine(spec: ClusterSpec, progress: Callable[[str], None]) -> Report:
    """Look at every model's folder; blends are reported where all their members could be read."""
    with tempfile.TemporaryDirectory() as scratch:
        return _examine(spec, progress, Path(scratch))


def _examine(spec: ClusterSpec, progress: Callable[[str], None], scratch: Path) -> Report:
    """Merges that are not built yet are sketched in `scratch`."""
    members: dict[str, MemberReport] = {}
    failures: dict[str, CuveeError] = {}
    letters: dict[str, str] = {}  # fingerprint to letter
    vocabularies: dict[Path, Vocabulary] = {}
    for name, member in spec.members.items():
        progress(f"reading {name}")
        try:
            folder = folder_or_sketch(member, scratch / name)
            facts = read_facts(folder)
            check_split(facts, member.num_shards)
            if folder not in vocabularies:
                vocabularies[folder] = read_vocabulary(folder)
            vocabulary = vocabularies[folder]
            letter = letters.setdefault(vocabulary.fingerprint, _letter(len(letters)))
            members[name] = _member_report(name, member, facts, letter, vocabulary.byte_faithful)
        except CuveeError as error:
            failures[f"members.{name}"] = error
    for name, ranker in spec.rankers.items():
        progress(f"reading {name}")
        try:
            folder = folder_or_sketch(ranker, scratch / f"ranker-{name}")
            read_ranker_config(folder, ranker)
        except CuveeError as error:
            failures[f"rankers.{name}"] = error
    blends: dict[str, BlendReport] = {}
    for name, blend in spec.blends.items():
        if all(member in members for member in blend.members):
            blends[name] = _blend_report(spec, name, members)
            try:
                letters_of = {member: members[member].vocabulary for member in blend.members}
                blend.check_vocabularies(name, letters_of)
                gate_of(spec, blend)
            except CuveeError as error:
                failures[f"blends.{name}"] = error
    return Report(spec, members, blends, failures)


def _letter(index: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    return string.ascii_uppercase[index % 26] + (str(index // 26) if index >= 26 else "")


def _member_report(
    name: str, spec: MemberSpec, facts: ModelFacts, letter: str, reads_faithfully: bool
) -> MemberReport:
    device = "cuda" if spec.resources.num_gpus else "cpu"
    kv_memory_bytes = spec.kv_memory_bytes
    if kv_memory_bytes is None and (free_bytes := free_memory_bytes(device)) is not None:
        num_devices = spec.num_shards if device == "cuda" else 1
        kv_memory_bytes = default_kv_memory(
            facts,
            spec.dtype,
            device=device,
            free_bytes=free_bytes * num_devices,
            max_context=spec.max_context,
            kv_dtype=spec.cached_dtype,
            kv_share=spec.kv_share,
        )
    need, num_generations = None, None
    if kv_memory_bytes is not None:
        need = memory_need(facts, spec.dtype, kv_memory_bytes, spec.num_shards)
        num_generations = max_leases(
            facts,
            spec.cached_dtype,
            kv_memory_bytes=kv_memory_bytes,
            max_context=spec.max_context,
        )
    return MemberReport(name, spec, facts, letter, reads_faithfully, device, need, num_generations)


def _blend_report(spec: ClusterSpec, name: str, members: Mapping[str, MemberReport]) -> BlendReport:
    blend = spec.blends[name]
    vocabularies: dict[str, tuple[str, ...]] = {}
    for member in blend.members:
        letter = members[member].vocabulary
        vocabularies[letter] = (*vocabularies.get(letter, ()), member)
    span = blend.span_for(one_vocabulary=len(vocabularies) == 1)
    return BlendReport(name, blend, span, spec.revision_of(name), vocabularies)
