"""Prefix caching: pages that a sequence takes over from others, and those of its own that others can find.

Where a model keeps state beside them, a prefix is known only as far as a snapshot of the state behind it is.
"""

from .batch import Save
from .page_pool import PagePool
from .prefix_keys import joined_key, next_key, root_key
from .sequence import Sequence
from .snapshots import Snapshots

PAGES_BETWEEN_SNAPSHOTS = 4  # at least: a copy of a state takes as long as some tokens


class PrefixCache:
    """The pages by what they hold. pool: of `page_size` tokens each. enabled: if False, none is ever found.

    snapshots: of the states behind prefixes. keeps_state: whether the model has any.
    """

    def __init__(
        self,
        pool: PagePool,
        page_size: int,
        *,
        enabled: bool,
        snapshots: Snapshots | None = None,
        keeps_state: bool = False,
    ) -> None:
        self.snapshots = snapshots or Snapshots()
        self._pool = pool
        self._page_size = page_size
        self._enabled = enabled and (bool(self.snapshots) or not keeps_state)
        self._keeps_state = keeps_state
        self._coming: dict[bytes, Sequence] = {}  # by the key of a snapshot, who will make it
        pool.forgotten = self.snapshots.drop

    def find(self, sequence: Sequence) -> list[int]:
        """Return the pages, held or free, with the sequence's beginning; at least one token is left to run."""
        if not self._enabled or sequence.wants_all_of_prompt:
            return []
        full = self._num_full(sequence)
        self._extend_keys(sequence, full)
        pages = self._pool.lookup(sequence.page_keys[:full])
        while self._keeps_state and pages and sequence.page_keys[len(pages) - 1] not in self.snapshots:
            pages.pop()
        return pages

    def _num_full(self, sequence: Sequence) -> int:
        """Return how many pages of known tokens it has that leave at least one token to run."""
        return min(len(sequence.tokens) - 1, sequence.num_known) // self._page_size

    def restore(self, sequence: Sequence, hits: list[int]) -> int | None:
        """Return the slot of the state behind the pages that were found; None without any."""
        return self.snapshots.use(sequence.page_keys[len(hits) - 1]) if self._keeps_state and hits else None

    @property
    def _snaps(self) -> bool:
        return self._enabled and self._keeps_state

    def next_end(self, sequence: Sequence, start: int, end: int) -> int:
        """Return where a chunk that may end at `end` is to end, so that a snapshot can be made behind it."""
        if not self._snaps:
            return end
        last = self._num_full(sequence) * self._page_size
        if end > last > start:
            return last if self._is_due(sequence, last) else end
        cut = end // self._page_size * self._page_size
        return cut if end < last and cut > start else end

    def _is_due(self, sequence: Sequence, end: int) -> bool:
        return end - sequence.num_saved >= PAGES_BETWEEN_SNAPSHOTS * self._page_size

    def save(self, sequence: Sequence, end: int) -> Save | None:
        """Return the copy to make of a sequence's state behind its first `end` tokens, if one is due there."""
        aligned = end % self._page_size == 0 and end <= sequence.num_known
        if not self._snaps or not aligned or not self._is_due(sequence, end):
            return None
        self._extend_keys(sequence, end // self._page_size)
        key = sequence.page_keys[end // self._page_size - 1]
        sequence.num_saved = end
        slot = self.snapshots.take(key)
        return None if slot is None else Save(slot, key)

    def saved(self, save: Save) -> None:
        """Let a snapshot be found, once the device has its copy ahead of all that comes."""
        self.snapshots.keep(save.key)
        self._coming.pop(save.key, None)
        if not self._pool.lookup([save.key]):
            self.snapshots.drop(save.key)

    def begun(self, sequence: Sequence) -> None:
        """Note that a sequence will make a snapshot behind its prompt, for which others like it can wait."""
        key = self._last_key(sequence)
        if key is not None and self._is_due(sequence, self._num_full(sequence) * self._page_size):
            self._coming.setdefault(key, sequence)

    def stopped(self, sequence: Sequence) -> None:
        """Note that a sequence makes no snapshot any more."""
        key = self._last_key(sequence)
        if key is not None and self._coming.get(key) is sequence:
            del self._coming[key]

    def is_coming(self, sequence: Sequence) -> bool:
        """Return whether one that runs will soon leave a state that this one, which waits, can begin with."""
        if not self._coming or sequence.wants_all_of_prompt:
            return False
        return self._last_key(sequence) in self._coming

    def _last_key(self, sequence: Sequence) -> bytes | None:
        """Return the key behind which the last snapshot of its prompt is due; None if none is."""
        full = self._num_full(sequence)
        if not self._snaps or full < PAGES_BETWEEN_SNAPSHOTS:
            return None
        self._extend_keys(sequence, full)
        return sequence.page_keys[full - 1]

    def forget_all(self) -> None:
        """Let nothing be found any more: after a step failed, nothing says what pages and states hold."""
        self._pool.forget_all()
        self.snapshots.clear()

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
