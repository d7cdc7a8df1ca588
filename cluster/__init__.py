"""Cuvée: several small language models served as one."""

__version__ = "0.1.0"
