"""Owns how money is collected: the provider seam, a fake that fails in every way, Stripe, attempts and dunning."""
