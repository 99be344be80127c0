"""The decoupled Python model of the stream scenario, and the same generator as a bare loop."""
