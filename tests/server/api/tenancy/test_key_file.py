"""The form of the file of keys, and what is said of one that has another."""

import hashlib

import pytest

from peftserve.adapters.quotas import Quota
from peftserve.server.api.tenancy.key_file import KeyFileError, digest_of, parse_keys

SERVERS = Quota(max_adapters=7, max_bytes=99)
FILE = f"""
[[keys]]
name = "acme"
key = "sk-1"
weight = 2
max_queued = 64
[[keys]]
name = "acme"            # a second key of the same tenant
sha256 = "{hashlib.sha256(b"sk-2").hexdigest().upper()}"
tokens_per_minute = 1000
max_adapter_bytes = "10GiB"
[[keys]]
name = "ops"
key = "sk-3"
role = "admin"
max_adapters = 0
"""


def test_lines_are_keys_of_those_who_may_do_all() -> None:
    keys = parse_keys("\ufeff# ours\nk1\n\n  schlüssel \n".encode(), SERVERS)
    assert keys.keys() == {digest_of(b"k1"), digest_of("schlüssel".encode())}
    one, two = keys.values()
    assert one.is_admin
    assert two.is_admin
    assert one.name != two.name, "each has a share of its own"
    assert one.quota == SERVERS
    assert not any("k1" in str(part) for part in (one.name, one.owner, one.shown))


def test_tables_say_whose_each_key_is() -> None:
    keys = parse_keys(FILE.encode(), SERVERS)
    first, second, admin = (keys[digest_of(key)] for key in (b"sk-1", b"sk-2", b"sk-3"))
    assert first == second, "two keys of one tenant are the same tenant, whichever of them says what"
    assert (first.name, first.shown, first.is_admin) == ("tenant acme", "acme", False)
    assert (first.weight, first.max_queued, first.tokens_per_minute) == (2.0, 64, 1000)
    assert first.quota == Quota(7, 10 << 30)
    assert (admin.is_admin, admin.quota, admin.max_queued) == (True, Quota(0, 99), None)
    assert first.owner != admin.owner


ENTRY = '[[keys]]\nname = "a"\nkey = "sk-secret"\n'
FAULTS = {
    "": "has no key in it",
    "# nothing\n": "has no key in it",
    '[keys]\nname = "a"\n': r"table of TOML in line 1; .* begin with \[\[keys\]\]",
    ENTRY + f"x = {'[' * 10_000}": "is not TOML: a syntax error",
    ENTRY + f"x = {'9' * 5_000}": "is not TOML: a syntax error",
    ENTRY + "colour = 1": r"entry 1 of \[\[keys\]\]: 'colour' is no field; there are key, max_adapter_bytes",
    ENTRY + 'sha256 = "00"': r"entry 1 of \[\[keys\]\] \(a\): it takes one of key and sha256, not both",
    '[[keys]]\nname = "a"': "it takes one of key and sha256",
    '[[keys]]\nname = "a"\nsha256 = "00"': "64 hexadecimal digits",
    '[[keys]]\nname = "a"\nkey = " x"': "without spaces around",
    '[[keys]]\nkey = "x"': "name must be the tenant's",
    '[[keys]]\nname = "a\\n"\nkey = "x"': "name must be the tenant's",
    ENTRY + "weight = 0": "weight must be a number from 0.0001",
    ENTRY + "weight = true": "weight must be a number",
    ENTRY + "weight = nan": "weight must be a number",
    ENTRY + "max_queued = 0": "max_queued must be a whole number of 1 or more",
    ENTRY + "max_queued = 1.5": "max_queued must be a whole number",
    ENTRY + "tokens_per_minute = -1": "0 or more; 0 is no limit",
    ENTRY + 'max_adapter_bytes = "big"': "max_adapter_bytes is not a size such as 2GiB",
    ENTRY + 'role = "root"': "role must be one of user, admin",
    ENTRY + ENTRY.replace('"a"', '"b"'): r"entry 2 of \[\[keys\]\] \(b\): its key is that of entry 1",
    ENTRY + "weight = 1\n" + ENTRY.replace("secret", "2") + "weight = 2": "weight is 2.0, and 1.0 in entry 1",
    'other = 1\n' + ENTRY: "has 'other' at its top",
    '[[keys]]\nname = "a"\nkey = "sk-secret\n': "is not TOML: a syntax error",
    '[[keys.more]]\nx = 1\n[[keys]]\n': "is not TOML",
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_told_with_its_place_and_without_a_key(text: str) -> None:
    with pytest.raises(KeyFileError, match=FAULTS[text]) as raised:
        parse_keys(text.encode(), Quota())
    assert "secret" not in str(raised.value)


def test_what_is_no_text_is_told() -> None:
    with pytest.raises(KeyFileError, match=r"is not UTF-8 \(byte 2\)"):
        parse_keys(b"k1\xff", Quota())
