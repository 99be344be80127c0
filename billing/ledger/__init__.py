"""Owns money once it is earned: double entry, append-only, hash-chained. The seam is `billing.ledger.port.Ledger`."""
