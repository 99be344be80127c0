"""Owns the list of all money commands that the meter carries out."""

from collections.abc import Mapping
from typing import Any

from billing import bookkeeping, credit_store, quarantine, settlement, tally
from billing.invoices import commands, gathering, subscriptions
from billing.invoices.desk import Verb
from billing.payments import commands as payments
from billing.receipts import heads
from billing.recognition import commands as recognition
from billing.wallets import commands as wallets


def all_verbs() -> Mapping[str, Verb[Any]]:
    """Every command by its name."""
    return {
        **commands.VERBS,
        **gathering.VERBS,
        **subscriptions.VERBS,
        **payments.VERBS,
        **credit_store.VERBS,
        **settlement.VERBS,
        **tally.VERBS,
        **bookkeeping.VERBS,
        **quarantine.VERBS,
        **recognition.VERBS,
        **wallets.VERBS,
        **heads.VERBS,
    }
