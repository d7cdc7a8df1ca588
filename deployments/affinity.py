"""Which of a member's replicas a lease goes to: Serve's rule, with conversations that return.

Serve copies this module by value into every process that calls a member: no variables here.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from cluster.members.affinity import preferred
from deployments.routing import ADDRESS, is_suspect, tell_replicas


class AffinityRouter(PowerOfTwoChoicesRequestRouter):
    """Sends a call with a session to the replica preferred for it, any other to the less full of
    two, as Serve does; so, too, when the preferred one has no room.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve says which replicas run."""
        super().update_replicas(replicas)
        tell_replicas(self._deployment_id.name, len(self.curr_replicas))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call has found one dead, before Serve says so."""
        super().on_replica_actor_died(replica_id)
        tell_replicas(self._deployment_id.name, len(self.curr_replicas))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The preferred replica first, if there is one; Serve asks the others when it refuses.

        Those that have fallen silent are left out while there are any others.
        """
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        trusted = [replica for replica in candidate_replicas if not _is_silent(replica)]
        if trusted:
            ranks = [[replica for replica in rank if replica in trusted] for rank in ranks]
            ranks = ranks if any(ranks) else [trusted]
        first = self._preferred(trusted, pending_request)
        return [[first], *ranks] if first else ranks

    def _preferred(
        self, candidates: list[RunningReplica], pending: PendingRequest | None
    ) -> RunningReplica | None:
        """By the leases that this router has heard of: who is full will refuse."""
        if pending is None or not pending.metadata.session_id:
            return None
        by_name = {replica.replica_id.unique_id: replica for replica in candidates}
        known = self._replica_queue_len_cache
        num_leases = {name: known.get(r.replica_id) or 0 for name, r in by_name.items()}
        name = preferred(pending.metadata.session_id, num_leases)
        if name is None or num_leases[name] >= by_name[name].max_ongoing_requests:
            return None
        return by_name[name]

    def _get_pending_request_matching_metadata(self, request_metadata: Any = None) -> Any:
        """A replica found for a conversation is not for whoever waits longest."""
        if request_metadata is None or not request_metadata.session_id:
            return super()._get_pending_request_matching_metadata(request_metadata)
        waiting = self._pending_requests_to_fulfill
        own = (pending for pending in waiting if pending.metadata is request_metadata)
        return next((pending for pending in own if not pending.future.done()), None)


def _is_silent(replica: RunningReplica) -> bool:
    return is_suspect(replica.replica_metadata.get(ADDRESS, ""))
