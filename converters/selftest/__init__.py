"""The self-test of the gate: seeded faults that it must catch, honest conversions that it must pass."""
