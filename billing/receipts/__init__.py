"""Receipts: what proves to a tenant that its calls, and no others, are in the books; docs/receipts.md."""
