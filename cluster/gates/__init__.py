"""Learned gates: their files, and how they are trained."""
