"""`cuvee bench`: what blending costs, measured side by side in one run; see docs/benchmarks.md.

Imports no Ray until a cluster of it is asked for.
"""
