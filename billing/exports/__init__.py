"""Exports of the ledger for accountants' tools; see `docs/money.md`."""
