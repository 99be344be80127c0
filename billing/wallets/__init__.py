"""Wallets: money that tenants pay in advance, how it comes in and goes back, and the word when it runs low."""
