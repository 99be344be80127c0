"""From a framework's model to optimised, verified versions in a model repository. Begin at `flow.py`."""
