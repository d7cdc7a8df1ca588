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
from cluster.merging.cache import folder_of
from cluster.models.facts import check_split, default_kv_memory, read_facts
from cluster.models.machine import device_of, free_memory_bytes
from cluster.spec import MemberSpec
from cluster.text.member import MemberText


async def build_replica(
    name: str, spec: MemberSpec, on_lost: Callable[[], None] = lambda: None
) -> Replica:
    """Load a member's model off the event loop and start its engine.

    `on_lost` is called, on any thread, when one of several devices fails: the replica is of no
    more use then.
    """
    engine, text = await asyncio.to_thread(_load, spec, on_lost)
    info = MemberInfo(
        member=name,
        model=spec.model_name,
        vocabulary=text.vocabulary.fingerprint,
        max_context=engine.max_context,
        has_chat_template=text.has_chat_template,
    )

    def start(report: Callable[[list[Output]], None]) -> EngineThread:
        thread = EngineThread(engine, report)
        thread.start()
        return thread

    return Replica(info, text, start)


def _load(spec: MemberSpec, on_lost: Callable[[], None]) -> tuple[Engine, MemberText]:
    folder = folder_of(spec, download=True)
    facts = read_facts(folder)  # first, since it has the clearest words for what cannot be served
    check_split(facts, spec.num_shards)
    text = MemberText.load(folder)
    device = device_of(spec)
    kv_memory_bytes = spec.kv_memory_bytes
    free_bytes = free_memory_bytes(device)
    if kv_memory_bytes is None and free_bytes is not None:
        kv_memory_bytes = default_kv_memory(
            facts,
            spec.dtype,
            device=device,
            free_bytes=free_bytes * (spec.num_shards if device == "cuda" else 1),
            max_context=spec.max_context,
            kv_dtype=spec.cached_dtype,
            kv_share=spec.kv_share,
        )
    engine = load_engine(
        folder,
        dtype=spec.dtype,
        device=device,
        kv_memory_bytes=kv_memory_bytes,
        kv_dtype=spec.kv_dtype,
        max_context=spec.max_context,
        num_threads=max(1, round(spec.resources.num_cpus / spec.num_shards)),
        num_ids=text.vocabulary.size,
        num_shards=spec.num_shards,
        cuda_graphs=spec.cuda_graphs is not False,
        on_lost=on_lost,
    )
    return engine, text
