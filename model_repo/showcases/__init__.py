"""What our own part of a showcase model is: configurations, sources of Python steps, sample inputs."""
