"""What holds for every test."""

from hypothesis import HealthCheck, settings

# Hypothesis would fail an example that takes 200 ms, or slow drawing: on a loaded machine any may.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
