"""Owns the `tollway` command: mounts the verbs of `gateway.commands` and imports each group only when it is called."""

import importlib
import sys
from typing import Final

import typer

#: verb → (module, attribute, one line of help). Groups are Typer apps, single verbs are functions.
GROUPS: Final = {
    "models": ("gateway.commands.models", "Models, as their backends report them."),
    "keys": ("gateway.commands.keys", "Create, list, rotate and revoke API keys."),
    "tenants": ("gateway.commands.tenants", "Create, list, suspend and resume tenants."),
    "plans": ("gateway.commands.plans", "Plans, subscriptions, credit, coupons, and the plan simulator."),
    "prices": ("gateway.commands.prices", "Price books: apply, list, show."),
    "price": ("gateway.commands.price", "What calls would cost."),
    "billing": ("gateway.commands.billing", "Seller, billing accounts, items and subscriptions."),
    "finance": ("gateway.commands.finance", "Deferred revenue, ageing, margin."),
    "invoices": ("gateway.commands.invoices", "Drafts, invoices, credit notes, payments and refunds."),
    "wallet": ("gateway.commands.wallet", "Wallets of prepaid plans: top-ups, refunds, low balance."),
    "ledger": ("gateway.commands.ledger", "Trial balance and entries of the revenue ledger."),
    "receipts": ("gateway.commands.receipts", "Signed proofs that calls are in the books."),
    "convert": ("gateway.commands.convert", "Convert a model, verified and measured, into a repository; toolchains."),
    "admin": ("gateway.commands.admin", "The admin token."),
}
VERBS: Final = {
    "up": ("gateway.commands.up", "Start everything on this machine and keep it running."),
    "down": ("gateway.commands.down", "Stop what `up` started."),
    "doctor": ("gateway.commands.doctor", "Check this machine and these settings; say what to do."),
    "demo": ("gateway.commands.demo", "Start, make real calls, show the charge and the ledger entry."),
    "call": ("gateway.commands.call", "Call a model with an image, text, a file or JSON."),
    "usage": ("gateway.commands.usage", "Calls, rows and charges by day, model, key or tenant."),
    "rerate": ("gateway.commands.rerate", "Price recorded calls again and show the differences; posts nothing."),
    "verify-bill": ("gateway.commands.verify_bill", "Check an invoice against its proof, offline."),
    "verify-webhook": ("gateway.commands.verify_webhook", "Check the signature of a received webhook, offline."),
    "reconcile": ("gateway.commands.reconcile", "Prove answered = recorded = posted; exit 1 if not."),
}


def build_app(wanted: str | None) -> typer.Typer:
    """The command line. Only the module of `wanted` is imported; `None` (help) imports all."""
    app = typer.Typer(name="tollway", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    @app.callback()
    def root() -> None:
        """Tollway: a metered inference gateway."""

    for name, (module, text) in GROUPS.items():
        if wanted in (None, name):
            app.add_typer(importlib.import_module(module).app, name=name, help=text)
    for name, (module, text) in VERBS.items():
        if wanted in (None, name):
            app.command(name, help=text)(getattr(importlib.import_module(module), name.replace("-", "_")))
    return app


def main() -> None:
    """Entry point of the `tollway` script."""
    first = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    build_app(first if first in GROUPS or first in VERBS else None)()


if __name__ == "__main__":
    main()
