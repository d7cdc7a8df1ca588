"""Who may call, what of, and how much: keys, scopes, limits, certificates."""
