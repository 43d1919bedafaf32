"""Names of models as a command gives them: `a,b`, and `a{0..99}` for a hundred of them."""

import re
from collections.abc import Iterable

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(text: str) -> list[str]:
    """In the order given. `{08..10}` keeps the leading zeros, as a shell does."""
    return [name for part in text.split(",") if part for name in _expand_one(part)]


def _expand_one(part: str) -> list[str]:
    match = _BRACES.search(part)
    if not match:
        return [part]
    first, last = match.groups()
    width = len(first) if first.startswith("0") else 0
    before, after = part[: match.start()], _expand_one(part[match.end() :])
    return [f"{before}{n:0{width}}{rest}" for n in range(int(first), int(last) + 1) for rest in after]


def renames(pairs: Iterable[str]) -> dict[str, str]:
    """`OLD=NEW`, both with as many names. Raises ValueError with the end of the sentence "'x' is not ..."."""
    names = dict[str, str]()
    for pair in pairs:
        old, new = (expand(side) for side in pair.partition("=")[::2])
        if not old or len(old) != len(new):
            raise ValueError(f"{pair!r} is not OLD=NEW with as many names on both sides")
        names |= dict(zip(old, new, strict=True))
    return names
