"""Quotas: the pure Allowance and the stores that grant leases. HOT PATH."""
