"""Tables of figures as text: line by line as figures come, whole, or in Markdown. Knows no figures."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence


class Table:
    """A table whose lines can be printed one by one, since its columns have fixed widths.

    columns: name to a format such as "9" or "9.3f"; "<9" aligns to the left.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = {name: _Format(spec) for name, spec in columns.items()}

    def heading(self) -> str:
        return "".join(form.text(name) for name, form in self._columns.items())

    def line(self, *values: object) -> str:
        """Return one line. A text is shown as it is, None as an empty cell; missing values at the end are left out."""
        return "".join(
            form.text(form.shown(value)) for form, value in zip(self._columns.values(), values, strict=False)
        )


class _Format:
    def __init__(self, spec: str) -> None:
        match = re.fullmatch(r"(<?)(\d+)(.*)", spec)
        assert match, spec
        self._align, self._width, self._digits = match[1] or ">", match[2], match[3]

    def text(self, shown: str) -> str:
        return f"{shown:{self._align}{self._width}}"

    def shown(self, value: object) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:{self._digits}}"


def aligned(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a whole table, as wide as its cells: the first column to the left, the others to the right."""
    lines = [heading, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    return "\n".join(
        "  ".join([f"{first:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(cells, widths[1:], strict=True))])
        for first, *cells in lines
    )


def markdown(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"| {' | '.join(heading)} |"
    yield "| --- " * len(heading) + "|"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
