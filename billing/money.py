"""Owns how money is written: integer nanos ↔ decimal text, and a currency's minor unit. Pure; no floats.

One nano is 1e-9 of the major unit of any currency, so one representation serves USD, JPY and KWD alike.
"""

import re
from typing import Final

from billing.rating import Nanos

NANOS_PER_MAJOR: Final = 1_000_000_000
NANOS_DIGITS: Final = 9

_CODES = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP "
    "CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG "
    "HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL "
    "MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR "
    "RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD "
    "TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWG"
)
#: ISO 4217 alphabetic codes in use for payments.
CURRENCIES: Final = frozenset(_CODES.split())
_NO_MINOR_UNIT = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"
_MINOR_DIGITS: Final = {**dict.fromkeys(_NO_MINOR_UNIT.split(), 0), **dict.fromkeys(_THREE_DIGITS.split(), 3)}
_DECIMAL = re.compile(r"(-?)(\d{1,9})(?:\.(\d{1,9}))?\Z", re.ASCII)


class MoneyError(ValueError):
    """A text that is no amount, or a code that is no currency; the message names it."""


def is_currency(code: str) -> bool:
    return code in CURRENCIES


def minor_digits(currency: str) -> int:
    """Decimal places of the currency's minor unit (2 for most). Raises MoneyError for an unknown code."""
    if currency not in CURRENCIES:
        raise MoneyError(f"currency: {currency!r} is not an ISO 4217 code")
    return _MINOR_DIGITS.get(currency, 2)


def format_nanos(nanos: int) -> str:
    """Exact decimal text of the major unit, without trailing zeros: 1_500_000 → "0.0015"."""
    major, rest = divmod(abs(nanos), NANOS_PER_MAJOR)
    text = f"{major}.{rest:09d}".rstrip("0").rstrip(".")
    return f"-{text}" if nanos < 0 else text


def parse_nanos(text: str) -> Nanos:
    """The amount that `text` writes ("0.0015", "-3", "12.50"); at most nine digits each side of the point.

    Raises MoneyError for anything else: signs other than a leading minus, exponents, separators, blanks.
    """
    match = _DECIMAL.match(text)
    if match is None:
        raise MoneyError(f"amount: {text!r} is not a decimal with at most 9 digits before and after the point")
    sign, major, fraction = match.groups()
    nanos = int(major) * NANOS_PER_MAJOR + int((fraction or "").ljust(NANOS_DIGITS, "0"))
    return Nanos(-nanos if sign else nanos)


def to_minor(nanos: int, currency: str) -> int:
    """Whole minor units (cents, yen, fils), rounded half to even; for where money leaves the ledger, never inside."""
    unit: int = 10 ** (NANOS_DIGITS - minor_digits(currency))
    minor, rest = divmod(nanos, unit)
    if 2 * rest > unit or (2 * rest == unit and minor & 1):
        return minor + 1
    return minor


def from_minor(minor: int, currency: str) -> Nanos:
    """The exact nanos of `minor` minor units."""
    unit: int = 10 ** (NANOS_DIGITS - minor_digits(currency))
    return Nanos(minor * unit)
