"""Models that judge whole replies: rewards, pairs, embeddings. The router knows `base` only."""
