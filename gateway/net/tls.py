"""Owns the server's TLS context: 1.2 and newer, ALPN h2 and http/1.1."""

import ssl
from pathlib import Path

from gateway.errors import SettingsError


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """A context over the two PEM files, or None without them. Raises SettingsError when they cannot be used."""
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or error.args[-1]
        raise SettingsError(
            f"tls_certificate {certificate} and tls_key {key} cannot be used ({reason}): give a PEM chain and its key"
        ) from None
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
