import socket

import pytest

from peftserve.server.api.sources.addresses import addresses_of, is_public
from peftserve.server.api.sources.place import SourceFailed, SourceMissing

PUBLIC = "1.1.1.1 8.8.8.8 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1"
PRIVATE = """
    127.0.0.1 127.9.9.9 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 224.0.0.1
    239.1.1.1 240.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 :: ::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254
    64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2002:7f00:1::1 2002:a00:1::1 2001:0:a00:1::1 fe80::1 fe80::1%1
    fc00::1 fd00:ec2::254 fec0::1 ff02::1 ff0e::1 ::127.0.0.1 ::7f00:1 2001:db8::1 100::1 nonsense
"""


@pytest.mark.parametrize("text", PUBLIC.split())
def test_public_addresses(text):
    assert is_public(text)


@pytest.mark.parametrize("text", PRIVATE.split())
def test_addresses_that_only_the_server_reaches(text):
    assert not is_public(text)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0x7f.1", "2130706433", "127.1", "0177.0.0.1", "::1", "0"])
async def test_no_spelling_of_loopback_gets_by(host):
    with pytest.raises(SourceFailed):
        await addresses_of(host, 80, allow_private=False)


async def test_one_private_address_among_public_ones_is_refused(monkeypatch):
    loop_class = type(__import__("asyncio").get_running_loop())

    async def getaddrinfo(self, host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(loop_class, "getaddrinfo", getaddrinfo)
    with pytest.raises(SourceFailed, match="public"):
        await addresses_of("rebind.example", 443, allow_private=False)
    assert await addresses_of("rebind.example", 443, allow_private=True) == ["8.8.8.8", "10.0.0.1"]


async def test_unknown_hosts_are_told():
    for host in ("does-not-exist.invalid", "a" * 70 + ".example"):
        with pytest.raises(SourceMissing, match="not known"):
            await addresses_of(host, 80, allow_private=True)
