"""API keys: format, hashing and the keyring built from a policy snapshot."""
