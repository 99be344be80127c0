"""The durable usage log: its file format, its access to the disk, and its reader (docs/usage-log.md)."""
