"""Tollway's data plane, embedded engine and control plane."""
