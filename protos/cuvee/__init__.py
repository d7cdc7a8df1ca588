"""Wire contracts of Cuvée."""
