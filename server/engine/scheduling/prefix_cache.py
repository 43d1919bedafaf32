"""Prefix caching: pages that a sequence takes over from others, and those of its own that others can find."""

from .page_pool import PagePool
from .prefix_keys import joined_key, next_key, root_key
from .sequence import Sequence


class PrefixCache:
    """The pages by what they hold. pool: of `page_size` tokens each. enabled: if False, none is ever found."""

    def __init__(self, pool: PagePool, page_size: int, *, enabled: bool) -> None:
        self._pool = pool
        self._page_size = page_size
        self._enabled = enabled

    def find(self, sequence: Sequence) -> list[int]:
        """Return the pages, held or free, with the sequence's beginning; at least one token is left to run."""
        if not self._enabled or sequence.wants_all_of_prompt:
            return []
        full = min(len(sequence.tokens) - 1, sequence.num_known) // self._page_size
        self._extend_keys(sequence, full)
        return self._pool.lookup(sequence.page_keys[:full])

    def publish(self, sequence: Sequence, end: int) -> None:
        """Let pages be found that hold nothing but the first `end` tokens, all of which are known."""
        if not self._enabled:
            return
        full = end // self._page_size
        self._extend_keys(sequence, full)
        for i in range(sequence.num_published, full):
            self._pool.publish(sequence.pages[i], sequence.page_keys[i])
        sequence.num_published = max(sequence.num_published, full)

    def _extend_keys(self, sequence: Sequence, count: int) -> None:
        """Make the keys of the first `count` pages. Those ahead of where adapters begin to work are the base's own."""
        keys = sequence.page_keys
        while len(keys) < count:
            begin, end = len(keys) * self._page_size, (len(keys) + 1) * self._page_size
            adapters = sequence.adapters if end > sequence.active_from else ()
            previous = keys[-1] if keys else root_key(sequence.salt, adapters)
            if keys and adapters and begin <= sequence.active_from:
                previous = joined_key(previous, root_key(sequence.salt, adapters))
            keys.append(next_key(previous, sequence.tokens[begin:end]))
