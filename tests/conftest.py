"""What holds for all tests."""

import gc

from hypothesis import HealthCheck, settings

# How fast a machine is decides no test.
settings.register_profile(
    "cuvee", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("cuvee")

gc.set_threshold(10_000)  # as where it serves: torch and transformers leave much to look through
