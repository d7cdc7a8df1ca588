"""How the cluster is, as `cuvee.v1.AdminService` tells it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from cluster.errors import CuveeError
from cluster.members.base import Member, ReplicaState
from cluster.router.core import Router
from cluster.spec import BlendSpec
from cuvee.v1 import admin_pb2 as pb
from cuvee.v1 import admin_pb2_grpc

if TYPE_CHECKING:  # at run time the class takes no arguments
    _Context = grpc.aio.ServicerContext[Any, Any]

_ASK_TIMEOUT_S = 5.0  # a frozen replica must not keep the others' state from being told


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """cuvee.v1.AdminService over a router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def GetStatus(  # noqa: N802 (gRPC's name)
        self, request: pb.GetStatusRequest, context: _Context
    ) -> pb.GetStatusResponse:
        """Ask every member's replicas, all at once."""
        router, spec = self._router, self._router.spec
        asked = [
            _member(name, router.member(name), member.model_name)
            for name, member in spec.members.items()
        ]
        members = await asyncio.gather(*asked)
        return pb.GetStatusResponse(
            router=pb.RouterStatus(
                running=router.num_running,
                waiting=router.num_waiting,
                max_running=spec.limits.max_concurrent_generations,
                uptime_s=router.uptime_s,
            ),
            members=members,
            blends=[self._blend(name, blend) for name, blend in spec.blends.items()],
        )

    def _blend(self, name: str, spec: BlendSpec) -> pb.BlendStatus:
        tally, weights = self._router.tally.of(name), spec.weights
        is_ready = name in self._router.ready_blends
        return pb.BlendStatus(
            blend=name,
            revision=self._router.blend(name).revision if is_ready else "",
            replies=tally.num_replies,
            degraded_replies=tally.num_degraded,
            takeovers=tally.num_takeovers,
            shares=[
                pb.DrawnShare(
                    member=member,
                    weight=weights.get(member, 0.0),
                    drawn_tokens=tally.drawn[member],
                    drawn_share=tally.share_of(member),
                )
                for member in spec.members
            ],
        )


async def _member(name: str, member: Member, model: str) -> pb.MemberStatus:
    try:
        replicas = await asyncio.wait_for(member.replicas(), _ASK_TIMEOUT_S)
    except TimeoutError:
        error = f"not all of its replicas answered within {_ASK_TIMEOUT_S:g} s"
        return pb.MemberStatus(member=name, model=model, error=error)
    except CuveeError as error:
        return pb.MemberStatus(member=name, model=model, error=error.message)
    in_order = sorted(replicas, key=lambda state: state.address)
    return pb.MemberStatus(member=name, model=model, replicas=map(_replica, in_order))


def _replica(state: ReplicaState) -> pb.ReplicaStatus:
    pressure = state.pressure
    return pb.ReplicaStatus(
        address=state.address,
        leases=round(pressure.leases),
        sequences=state.num_sequences,
        busy=pressure.busy,
        working=pressure.working,
        waiting=pressure.waiting,
        kv_fill=pressure.kv_fill,
    )
