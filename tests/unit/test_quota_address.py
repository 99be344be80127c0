"""The setting `quota_store`."""

import pytest

from gateway.errors import SettingsError
from gateway.quota_address import QuotaAddress, parse_quota_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("memory://", None),
        ("redis://h", QuotaAddress(host="h")),
        ("redis://h:1/3?space=blue", QuotaAddress(host="h", port=1, database=3, space="blue")),
        ("redis://[::1]:7", QuotaAddress(host="::1", port=7)),
        ("rediss://u:p%23@h", QuotaAddress(host="h", username="u", password="p#", is_tls=True)),
        ("redis+unix:///run/v.sock?db=65535", QuotaAddress(path="/run/v.sock", database=65_535)),
        ("redis+unix://:p@/run/v.sock", QuotaAddress(path="/run/v.sock", password="p")),
        (f"redis://h?space={'s' * 64}", QuotaAddress(host="h", space="s" * 64)),
    ],
)
def test_an_address_says_where_and_as_whom(url: str, address: QuotaAddress | None) -> None:
    assert parse_quota_address(url) == address


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "scheme is none of ours"),
        ("memory://x", "scheme is none of ours"),
        ("valkey://h", "scheme is none of ours"),
        ("redis://", "names no host"),
        ("redis://:secret@", "names no host"),
        ("redis://secret@h:99999", "its port is not a number"),
        ("redis://secret@h:no", "its port is not a number"),
        ("redis://h:0", "0 is not a port"),
        ("redis://secret@[h", "its host cannot be read"),
        ("redis://h/one", "the database must be a number"),
        ("redis://h/65536", "the database must be a number"),
        ("redis://h/1/2", "the database must be a number"),
        ("redis://h/²", "the database must be a number"),
        ("redis://h?db=1", "mean nothing here: db"),
        ("redis://h?space=a&space=b", "given twice"),
        ("redis://h?space=", "space must be"),
        ("redis://h?space={x}", "space must be"),
        (f"redis://h?space={'s' * 65}", "space must be"),
        ("redis://:secret#@h", "#fragment"),
        ("redis+unix://run/v.sock", "absolute path"),
        ("redis+unix:///", "absolute path"),
        ("redis+unix:///v?timeout=1", "mean nothing here: timeout"),
    ],
)
def test_what_cannot_be_used_is_refused_without_repeating_it(url: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_quota_address(url)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_for_logs_an_address_has_no_name_and_no_password() -> None:
    address = parse_quota_address("rediss://user:secret@h/2")
    assert str(address) == "rediss://h:6379/2"
    assert str(parse_quota_address("redis+unix://:secret@/v.sock")) == "redis+unix:///v.sock"
