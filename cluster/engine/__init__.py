"""What runs inside one member replica: paged cache, ragged batches, sampling, models."""
