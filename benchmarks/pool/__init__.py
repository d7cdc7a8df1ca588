"""A large pool on one machine: engines that only wait, and everything else of Cuvée for real.

A replica's forward pass is a timer with the length that a GPU would take. Leases, exchanges over
gRPC, the router, its public edge and the clients are a cluster's; only Ray Serve is left out.
"""
