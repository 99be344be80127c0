"""Owns which payment providers this installation has: DATA/payments.toml, mode 600, because it holds their keys.

[stripe]
api_key = "sk_live_…"
webhook_secret = "whsec_…"
"""

import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from billing.payments.port import PaymentProvider, ProviderRefused
from billing.payments.stripe_provider import StripeProvider
from gateway.errors import SettingsError

PROVIDERS_FILE: Final = "payments.toml"


class _Stripe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    api_key: str
    webhook_secret: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    stripe: _Stripe | None = None


def load_providers(data_dir: Path) -> Mapping[str, PaymentProvider]:
    """Providers by name; none without the file. Raises SettingsError: unreadable, open to others, or incomplete."""
    path = data_dir / PROVIDERS_FILE
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{PROVIDERS_FILE}: cannot be read ({type(error).__name__}): check its rights") from error
    if mode & 0o077:
        raise SettingsError(f"{PROVIDERS_FILE}: others may read it (mode {mode:o}): run chmod 600 on it")
    try:
        found = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        # Not the parser's text: it may quote a key.
        raise SettingsError(f"{PROVIDERS_FILE}: is no TOML") from error
    except msgspec.ValidationError as error:
        raise SettingsError(f"{PROVIDERS_FILE}: {error}") from error
    if found.stripe is None:
        return {}
    try:
        return {"stripe": StripeProvider(found.stripe.api_key, found.stripe.webhook_secret)}
    except ProviderRefused as error:
        raise SettingsError(f"{PROVIDERS_FILE}: {error}") from error
