"""Sans-IO protocol code: bytes in, events and bytes out. HOT PATH; no sockets, clocks or settings."""
