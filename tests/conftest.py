"""What holds for every test."""

from hypothesis import HealthCheck, settings

# Hypothesis would fail an example that takes 200 ms, or slow drawing: on a loaded machine any may.
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples at every run: what is red was made so by the change. `--hypothesis-profile=search` draws new ones.
settings.register_profile("same", _UNTIMED, derandomize=True)
settings.register_profile("search", _UNTIMED, derandomize=False)
settings.load_profile("same")
