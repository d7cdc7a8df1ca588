"""Seeded harm to a cluster under load: what its streams say, and what is left at the end."""
