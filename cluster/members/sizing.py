"""How many leases a replica takes: as many as its KV room holds at full length."""

from __future__ import annotations

from cluster.merging.cache import folder_of
from cluster.models.facts import max_leases, read_facts
from cluster.spec import MemberSpec

_LEASES_OF_DEFAULT_ROOM = 32  # the room taken unasked holds this many full-length sequences


def num_leases(spec: MemberSpec) -> int:
    """The most leases that one replica of the member should hold at a time."""
    if spec.kv_memory_bytes is None:
        return _LEASES_OF_DEFAULT_ROOM
    facts = read_facts(folder_of(spec, download=True))
    return max_leases(
        facts,
        spec.cached_dtype,
        kv_memory_bytes=spec.kv_memory_bytes,
        max_context=spec.max_context,
    )
