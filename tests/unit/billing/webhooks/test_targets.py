"""No webhook reaches an address of ours: every address of a name is checked, and the one that was checked is used."""

import ipaddress

import pytest

from billing.webhooks.targets import ADDRESSES_MAX, URL_MAX, TargetRefused, is_public, look_at, parse_url

PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "https://example.com:8443/",
        "http://example.com:443/",
        "https://user@example.com/",
        "https://user:pass@example.com/",
        "https://example.com/#fragment",
        "https:///path",
        "https://exa mple.com/",
        "https://example.com/\n",
        "https://example.com\\@internal/",
        "https://exämple.com/",
        "https://[::1/",
        "https://example.com:99999/",
        "//example.com/",
        "javascript:alert(1)",
        "https://example.com/" + "a" * URL_MAX,
    ],
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(TargetRefused):
        parse_url(url)


@pytest.mark.parametrize("url", ["https://example.com", "http://example.com:80/a?b=c", "https://example.com:443/"])
def test_usual_urls_are_taken(url: str) -> None:
    assert look_at(url, lambda *_: [PUBLIC]).address == PUBLIC


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.1",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.88.99.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001::1",
        "2001:db8::1",
    ],
)
def test_an_address_that_is_not_public_is_refused_also_beside_a_public_one(address: str) -> None:
    for found in ([address], [PUBLIC, address]):
        with pytest.raises(TargetRefused):
            look_at("https://example.com/", lambda *_, found=found: found)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_addresses_written_in_other_ways_are_seen_through(host: str) -> None:
    with pytest.raises(TargetRefused):
        look_at(f"http://{host}/")


def test_the_name_is_looked_up_once_and_its_address_pinned() -> None:
    asked: list[str] = []

    def rebinding(host: str, _port: int) -> list[str]:
        asked.append(host)
        return [PUBLIC] if len(asked) == 1 else ["127.0.0.1"]

    target = look_at("https://example.com/hook?x=1", rebinding)
    assert (target.address, target.host, target.port, target.path) == (PUBLIC, "example.com", 443, "/hook?x=1")
    assert asked == ["example.com"]


def test_a_name_without_an_address_or_with_too_many_is_refused() -> None:
    def unknown(_host: str, _port: int) -> list[str]:
        raise OSError("no such name")

    for resolve in (unknown, lambda *_: [], lambda *_: [PUBLIC] * (ADDRESSES_MAX + 1), lambda *_: ["nonsense"]):
        with pytest.raises(TargetRefused):
            look_at("https://example.com/", resolve)
