"""From a member's spec to a replica that serves it, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.engine.engine import Engine
from cluster.engine.loading import load_engine
from cluster.engine.thread import EngineThread
from cluster.engine.types import Output
from cluster.members.base import MemberInfo
from cluster.members.replica import Replica
from cluster.models.facts import default_kv_memory, read_facts
from cluster.models.machine import device_of, free_memory_bytes
from cluster.models.resolve import resolve
from cluster.spec import MemberSpec
from cluster.text.member import MemberText


async def build_replica(name: str, spec: MemberSpec) -> Replica:
    """Load a member's model off the event loop and start its engine."""
    engine, text = await asyncio.to_thread(_load, spec)
    info = MemberInfo(
        member=name,
        model=spec.model,
        vocabulary=text.vocabulary.fingerprint,
        max_context=engine.max_context,
        has_chat_template=text.has_chat_template,
    )

    def start(report: Callable[[list[Output]], None]) -> EngineThread:
        thread = EngineThread(engine, report)
        thread.start()
        return thread

    return Replica(info, text, start)


def _load(spec: MemberSpec) -> tuple[Engine, MemberText]:
    folder = resolve(spec.model, spec.revision, download=True)
    facts = read_facts(folder)  # first, since it has the clearest words for what cannot be served
    text = MemberText.load(folder)
    device = device_of(spec)
    kv_memory_bytes = spec.kv_memory_bytes
    free_bytes = free_memory_bytes(device)
    if kv_memory_bytes is None and free_bytes is not None:
        kv_memory_bytes = default_kv_memory(
            facts,
            spec.dtype,
            device=device,
            free_bytes=free_bytes,
            max_context=spec.max_context,
        )
    engine = load_engine(
        folder,
        dtype=spec.dtype,
        device=device,
        kv_memory_bytes=kv_memory_bytes,
        max_context=spec.max_context,
        num_threads=max(1, round(spec.resources.num_cpus)),
        num_ids=text.vocabulary.size,
    )
    return engine, text
