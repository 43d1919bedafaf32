"""Whose pages may ask: origins as browsers compare them, and names that lead to this machine only."""

import contextlib

import pytest
from starlette.datastructures import Headers

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.http.web_pages import Origin, PageRules, is_among, is_loopback, own_hosts, parse_origin


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://A.example", Origin("http", "a.example", 80)),
        ("https://a.example:443", Origin("https", "a.example", 443)),
        ("http://[::1]:8000", Origin("http", "::1", 8000)),
        ("chrome-extension://abc", Origin("chrome-extension", "abc", None)),
        ("null", None),
        ("", None),
        ("http://a.example:x", None),
        ("http://a.example/", None),
        ("http://u@a.example", None),
        ("http://[::1", None),
    ],
)
def test_origins_are_compared_as_browsers_do(text, origin):
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    ("headers", "scheme", "is_own"),
    [
        ({"host": "a.example", "origin": "http://a.example:80"}, "http", True),
        ({"host": "a.example:443", "origin": "https://A.example"}, "https", True),
        ({"host": "a.example", "origin": "http://a.example"}, "https", False),
        ({"host": "a.example:8000", "origin": "http://a.example:8001"}, "http", False),
        ({"origin": "http://a.example"}, "http", False),
        ({"host": "", "origin": "null"}, "http", False),
        ({"host": "evil.example"}, "http", True),
    ],
)
def test_the_own_origin_has_the_scheme_the_name_and_the_port_that_were_asked(headers, scheme, is_own):
    with contextlib.nullcontext() if is_own else pytest.raises(ApiError, match="may not ask"):
        PageRules().check(Headers(headers), scheme, "10.0.0.1")


def test_of_two_origins_or_hosts_each_must_do():
    raw = [(b"host", b"localhost"), (b"host", b"evil.example"), (b"origin", b"http://localhost")]
    with pytest.raises(ApiError, match="may not ask"):
        PageRules().check(Headers(raw=raw), "http", "")
    with pytest.raises(ApiError, match="not asked by the name"):
        PageRules(hosts=frozenset()).check(Headers(raw=raw), "http", "")
    both = [(b"host", b"a"), (b"origin", b"http://a"), (b"origin", b"http://evil.example")]
    with pytest.raises(ApiError, match="may not ask"):
        PageRules().check(Headers(raw=both), "http", "")


def test_names_are_asked_for_where_only_this_machine_reaches_the_server():
    for bound in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1"):
        assert is_loopback(bound), bound
        assert own_hosts(bound, ["Box.example"]) == {bound, "box.example"}
        assert own_hosts(bound, ["*"]) is None
    for bound in ("0.0.0.0", "::", "", "10.0.0.1"):
        assert not is_loopback(bound), bound
        assert own_hosts(bound, ["box.example"]) is None


def test_proxies_are_addresses_and_networks():
    assert is_among("10.2.3.4", ["10.0.0.0/8"])
    assert is_among("::ffff:10.2.3.4", ["10.2.3.4"])
    assert is_among("", ["*"])
    assert not is_among("", ["10.0.0.0/8"])
    assert not is_among("10.2.3.4", ["::/0", "10.2.3.5"])
