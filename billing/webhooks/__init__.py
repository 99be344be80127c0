"""Owns outgoing webhooks apart from any database: signatures, allowed targets, retry times, and the sending."""
