"""Sizes in bytes, as people write them."""

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Return bytes: `2GiB` and `512KiB` count in powers of 1024, `512MB` and `2G` of 1000, a bare number as it is.

    Raises ValueError with the end of the sentence "'x' is not ...".
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("is not a size such as 2GiB, 512MB or 1073741824")
    number, unit, binary = match.groups()
    num_bytes = int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()])
    if num_bytes < 1:
        raise ValueError("is not a size of one byte or more")
    return num_bytes


def show_size(num_bytes: int) -> str:
    """Return a size as `parse_size` reads it, in the largest unit of which it is a whole number."""
    unit = next(unit for unit in reversed(_POWERS) if num_bytes % 1024 ** _POWERS[unit] == 0)
    return f"{num_bytes // 1024 ** _POWERS[unit]}{unit}{'iB' if unit else ''}"
