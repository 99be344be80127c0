"""Owns where webhooks may go (MONEY.md §5, API7): public addresses on the usual ports, decided once and then pinned.

The name is resolved once; **every** address it has must be public; the connection goes to one of these addresses, never
to a second look-up, so a name that changes its mind in between (DNS rebinding) changes nothing.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

URL_MAX: Final = 2_048
PORTS: Final = {"https": 443, "http": 80}
ADDRESSES_MAX: Final = 32
#: What `ipaddress` calls global, but which leads to hosts of ours or to translators that reach them.
_REFUSED_NETWORKS: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


class TargetRefused(ValueError):
    """A URL that no webhook may be sent to; the message says why."""


class Target(NamedTuple):
    """A place that was looked at. `address` is where to connect, `host` what TLS and the Host header name."""

    scheme: str
    host: str
    port: int
    path: str
    address: str


def parse_url(url: str) -> SplitResult:
    """`url` split, if its form is allowed. Raises TargetRefused: scheme, port, credentials, fragment, characters."""
    if len(url) > URL_MAX or not url.isascii() or any(char <= " " or char in {"\x7f", "\\"} for char in url):
        raise TargetRefused(f"url: must be ASCII without blanks, at most {URL_MAX} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TargetRefused(f"url: {error}") from error
    if parts.scheme not in PORTS:
        raise TargetRefused("url: must begin with https:// or http://")
    if port is not None and port != PORTS[parts.scheme]:
        raise TargetRefused(f"url: the port of {parts.scheme} must be {PORTS[parts.scheme]}")
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.fragment:
        raise TargetRefused("url: needs a host, and must have no user, password or fragment")
    return parts


def look_at(url: str, resolve: Resolve | None = None, is_allowed: Callable[[Address], bool] | None = None) -> Target:
    """Resolve and check a URL. Blocking. Raises TargetRefused when its form or one of its addresses is not allowed.

    `resolve` and `is_allowed` replace the system's resolver and the rule for addresses, for tests.
    """
    parts = parse_url(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    try:
        texts = (resolve or system_resolve)(host, port)
    except OSError as error:
        raise TargetRefused(f"url: {host} cannot be resolved") from error
    if not texts or len(texts) > ADDRESSES_MAX:
        raise TargetRefused(f"url: {host} has no address, or more than {ADDRESSES_MAX}")
    rule = is_allowed or is_public
    for text in texts:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError as error:
            raise TargetRefused(f"url: {host} resolves to {text!r}") from error
        if not rule(address):
            raise TargetRefused(f"url: {host} resolves to an address that is not public")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, path, texts[0])


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet. IPv4 inside IPv6 is judged by the IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if any(address.version == network.version and address in network for network in _REFUSED_NETWORKS):
        return False
    return address.is_global and not address.is_multicast and not address.is_unspecified and not address.is_reserved


def system_resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))
