"""Cuvée on Ray Serve: the only package that imports ray.

Serve places, counts and heals; tokens never pass through it. One Serve deployment per member, one
engine per replica; one Serve deployment for the router, whose replicas run the public edge.
"""
