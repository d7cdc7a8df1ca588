"""Pools, faults, long loads and ramps, measured; what blending costs, `cuvee bench` tells."""

import os

# Before anything imports transformers or gRPC: a benchmark's own lines are enough on the terminal.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
