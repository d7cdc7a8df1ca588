"""From a blend file to the Kubernetes objects that run it with KubeRay.

Rendering is pure: a spec and options in, objects out, the same ones every time. Nothing here
imports Ray, and nothing speaks to a cluster.
"""
