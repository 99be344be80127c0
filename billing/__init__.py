"""Money: records, price book, rating, the double-entry ledger and the meter that posts to it."""
