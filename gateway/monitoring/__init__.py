"""Metric names, hot counters and the structured call log."""
