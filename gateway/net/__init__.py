"""asyncio.Protocol shells around `gateway.wire`: inbound listeners and outbound connection pools. HOT PATH."""
