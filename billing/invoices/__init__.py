"""Owns what a customer is asked to pay: periods, proration, tax, documents and their life, credit notes, refunds."""
