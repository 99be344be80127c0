"""Framework models to optimised engines (issue D). Empty until then."""
