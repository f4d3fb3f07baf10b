"""Which addresses may be reached."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nommerd.errors import ConfigError
from nommerd.net.addresses import Policy, literal

PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255", "169.254.169.254",
    "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16", "::",
    "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::", "2001::1", "2001:0:53aa:64c:0:fbff:80ff:fffe",
    "2001:20::1", "2001:db8::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "100::1",
    "fe80::1%eth0",
]
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "169.253.1.1", "223.255.255.255",
    "2606:4700::1111", "2a00:1450:4001:800::200e", "::ffff:8.8.8.8", "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_special_addresses_are_refused(address: str) -> None:
    assert not Policy().permits(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    assert Policy().permits(ip_address(address))


def test_an_allowed_network_opens_itself_and_nothing_else() -> None:
    policy = Policy(["10.1.0.0/16", "fd00::/8"])
    assert policy.permits(ip_address("10.1.200.3"))
    assert policy.permits(ip_address("::ffff:10.1.0.1"))
    assert policy.permits(ip_address("fd12::1"))
    assert not policy.permits(ip_address("10.2.0.1"))
    assert not policy.permits(ip_address("::1"))


@pytest.mark.parametrize("text", ["10.0.0.0/33", "example.com", "", "10.0.0.0/8/8"])
def test_what_is_no_network_is_the_operators_to_mend(text: str) -> None:
    with pytest.raises(ConfigError, match=r"net\.allow_networks"):
        Policy([text])


@pytest.mark.parametrize("text", ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "017700000001"])
def test_every_spelling_of_an_address_is_read_like_the_system_does(text: str) -> None:
    assert literal(text) == ip_address("127.0.0.1")


@pytest.mark.parametrize("text", ["example.com", "1.example.com", "localhost", "", "１２７.0.0.1", "12a", "1.2.3.4.5"])
def test_a_name_is_no_address(text: str) -> None:
    assert literal(text) is None
