"""How long prompts and outputs are, in tokens: fixed, uniform in a range, or as Punica draws both together."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Lengths = NDArray[np.int64]
SIGMA, SHIFT, SCALE, LONGEST = 0.8, -1.0, 18.0, 2048  # Punica's prompts are lognormal, of ShareGPT's shape


@dataclass(frozen=True)
class Range:
    """From least to most, both included, each length as likely as the others."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"

    def draw(self, count: int, random: Generator) -> Lengths:
        return random.integers(self.least, self.most, size=count, endpoint=True)


def parse(text: str) -> Range:
    """`128` or `8-512`. Raises ValueError with the end of the sentence "'x' is not ..."."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not match:
        raise ValueError("a number of tokens such as 128, or a range such as 8-512")
    found = Range(int(match[1]), int(match[2] or match[1]))
    if found.least < 1:
        raise ValueError("1 or more")
    if found.least > found.most:
        raise ValueError("a range from less to more")
    return found


def punica(count: int, random: Generator) -> tuple[Lengths, Lengths]:
    """Prompts p; outputs such that both together are uniform below 2048, though at least 2 tokens come after p."""
    drawn = np.exp(SIGMA * random.standard_normal(count)) * SCALE + SHIFT
    prompts = np.clip(drawn, 1, LONGEST - 2).astype(np.int64)
    return prompts, np.maximum(prompts + 2, random.integers(0, LONGEST, size=count)) - prompts
