"""Keys of the prefix cache: a SHA-256 chain over tenant salt, adapter digests with weights, and tokens.

Two sequences share a page only if everything that its keys and values depend on is equal; a renamed, reloaded or
new version of an adapter has another digest and so other keys.
"""

import hashlib
from array import array
from collections.abc import Sequence as Seq

from ...wire.messages import WeightedAdapter


def root_key(salt: str, adapters: Seq[WeightedAdapter]) -> bytes:
    """Return the key before the first page."""
    fields = (salt, [(adapter.key, adapter.weight) for adapter in adapters])
    return hashlib.sha256(repr(fields).encode()).digest()


def next_key(previous: bytes, tokens: Seq[int]) -> bytes:
    """Return the key of the page that holds `tokens` and follows the page with key `previous`."""
    return hashlib.sha256(previous + array("q", tokens).tobytes()).digest()


def joined_key(previous: bytes, root: bytes) -> bytes:
    """Return the key in place of `previous` where adapters with `root` begin to work in the middle of a text."""
    return hashlib.sha256(previous + root).digest()
