"""How the router reaches a member's replica, and what answers there.

    router side                              replica side
    Seat ── Transport ──┬── Exchange ─ gRPC ─ MemberServer ──┬── Replica ── Engine
                        └── (in process: no wire) ───────────┘

A `Seat` is one sequence on one leased replica. It speaks to a `Transport`: the replica itself when
it lives in this process, or an `Exchange` that carries the same calls over gRPC.
"""
