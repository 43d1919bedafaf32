"""Pages of the KV cache: how many sequences hold each, and which of them hold a known prefix.

A page is free, held (counted), or free with a key: still readable under its key until it is needed for something
else, least recently freed first. Knows no tokens and no tensors.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence


class PagePool:
    """The pages, numbered from 0. forgotten: called with the key of each page that is needed for something else."""

    def __init__(self, num_pages: int, forgotten: Callable[[bytes], None] = lambda _: None) -> None:
        self.num_pages = num_pages
        self.forgotten = forgotten
        self._holders = [0] * num_pages
        self._free: OrderedDict[int, None] = OrderedDict((page, None) for page in range(num_pages))
        self._page_of_key: dict[bytes, int] = {}
        self._key_of_page: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def holders(self) -> list[int]:
        """Return the number of holders of each page."""
        return list(self._holders)

    def lookup(self, keys: Iterable[bytes]) -> list[int]:
        """Return the pages of the longest known prefix of `keys`."""
        pages = []
        for key in keys:
            page = self._page_of_key.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_free_without(self, pages: Sequence[int]) -> int:
        """Return how many pages would still be free if `pages` were held as well."""
        return len(self._free) - sum(page in self._free for page in pages)

    def num_held_once(self, pages: Iterable[int]) -> int:
        """Return how many of these pages would be free if their holder gave them up."""
        return sum(self._holders[page] == 1 for page in pages)

    def hold(self, pages: Iterable[int]) -> None:
        """Count one more holder for each page; a free one keeps its contents."""
        for page in pages:
            if self._holders[page] == 0:
                del self._free[page]
            self._holders[page] += 1

    def take(self, count: int) -> list[int]:
        """Hold `count` free pages, and forget what they held. The caller has looked at `num_free`."""
        assert count <= len(self._free), "took more pages than are free"
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._forget(page)
            self._holders[page] = 1
        return pages

    def publish(self, page: int, key: bytes) -> None:
        """Let the held page's contents be found under `key`. The first page of a key stays its page."""
        assert self._holders[page] > 0, "published a page that nobody holds"
        if key not in self._page_of_key and page not in self._key_of_page:
            self._page_of_key[key] = page
            self._key_of_page[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Give up one hold on each page. The end of a sequence is forgotten before its beginning."""
        for page in reversed(pages):
            assert self._holders[page] > 0, "released a page that nobody holds"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free[page] = None
                if page not in self._key_of_page:
                    self._free.move_to_end(page, last=False)

    def forget_all(self) -> None:
        """Make no page findable any more: after a step failed, nothing says what its pages hold."""
        self._page_of_key.clear()
        self._key_of_page.clear()

    def _forget(self, page: int) -> None:
        key = self._key_of_page.pop(page, None)
        if key is not None:
            del self._page_of_key[key]
            self.forgotten(key)

    def check_integrity(self) -> None:
        """Raises AssertionError where the books do not agree."""
        for page, holders in enumerate(self._holders):
            assert (holders == 0) == (page in self._free), f"page {page}: {holders} holders, free: {page in self._free}"
        assert len(self._page_of_key) == len(self._key_of_page), "keys and keyed pages differ in number"
        for key, page in self._page_of_key.items():
            assert self._key_of_page[page] == key, f"page {page} is filed under another key"
