"""Texts to route by: made-up words that come as often as words of a language do, and words of a topic among them."""

from collections.abc import Sequence
from itertools import accumulate
from random import Random

SYLLABLES = [a + b for a in "bdfghklmnprstvz" for b in "aeiou"]
COMMON, TOPICAL = 4000, 60  # words of the language, and of one topic
EXAMPLE_WORDS = 12


class Texts:
    """The texts of one seed. A topic is a number, and has words of its own."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._seed = seed
        self._common = _words(Random(f"{seed} common"), COMMON)
        self._zipf = list(accumulate(1 / rank for rank in range(1, COMMON + 1)))

    def example(self, topic: int) -> str:
        """Return an example of a topic, a third of it in words of the topic."""
        own = _words(Random(f"{self._seed} {topic}"), TOPICAL)
        words = self._random.choices(own, k=EXAMPLE_WORDS // 3) + self._drawn(EXAMPLE_WORDS * 2 // 3)
        self._random.shuffle(words)
        return " ".join(words)

    def prompt(self, length: int) -> str:
        """Return a prompt of so many words."""
        return " ".join(self._drawn(length))

    def _drawn(self, length: int) -> list[str]:
        return self._random.choices(self._common, cum_weights=self._zipf, k=length)


def _words(random: Random, count: int) -> Sequence[str]:
    return ["".join(random.choices(SYLLABLES, k=random.randint(1, 4))) for _ in range(count)]
