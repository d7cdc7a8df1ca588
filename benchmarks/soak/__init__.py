"""A constant load for minutes or hours, and whether any process grows under it."""
