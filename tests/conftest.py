"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# How fast a machine is decides no test.
settings.register_profile(
    "cuvee", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("cuvee")
