"""One sequence's place in its grammar."""

from collections.abc import Callable, Set

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

Words32 = NDArray[np.int32]


class Matcher:
    """Follows one sequence's output, and says which tokens may come next.

    eos: ids that the vocabulary takes for ends of a sequence. ends: those that do end this sequence, which may come
    wherever the grammar is complete, and nowhere else unless the grammar itself has them. on_error: called when the
    sequence cannot go on: what copies of one grammar share, such as the states of its lexer, may have reached a limit.
    """

    def __init__(
        self, matcher: LLMatcher, eos: Set[int], ends: Set[int], on_error: Callable[[], None] = lambda: None
    ) -> None:
        self.error: str | None = None  # set once the sequence cannot go on
        self._matcher = matcher
        self._ends = tuple(ends)
        self._not_ends = tuple(eos - ends)
        self._on_error = on_error

    def fill(self, mask: Words32) -> None:
        """Set the bits of the tokens that may come next.

        mask: (words,) int32 of zeros: bit i % 32 of word i // 32 stands for token i. Where it has fewer bits than the
        vocabulary has tokens, those behind its end may not come.
        """
        if self.error is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
            mask[: len(bits)] = bits[: len(mask)]
            self._note_error()
        if self.error is not None:
            mask[:] = 0
        is_complete = self.error is not None or self._matcher.is_accepting()
        _set(mask, self._not_ends, False)
        if is_complete:
            _set(mask, self._ends, True)

    def take(self, token: int) -> bool:
        """Follow a token that ends nothing, and return whether nothing may come behind it.

        So it does after an error, which `error` tells.
        """
        if self.error is None:
            self._matcher.consume_token(token)
            self._note_error()
        return self.error is not None or self._matcher.is_stopped()

    def _note_error(self) -> None:
        if self._matcher.is_error():
            self.error = f"the answer's grammar cannot be followed further: {self._matcher.get_error().strip()[:300]}"
            self._on_error()


def _set(mask: Words32, tokens: tuple[int, ...], value: bool) -> None:
    bits = mask.view(np.uint32)
    for token in tokens:
        word, bit = divmod(token, 32)
        if word < len(bits):
            bits[word] = bits[word] | np.uint32(1 << bit) if value else bits[word] & ~np.uint32(1 << bit)
