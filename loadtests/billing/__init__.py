"""The bench of money: what posting, prepaid funds and quota leases cost."""
