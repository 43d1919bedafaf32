"""Rewrite the parts of the documentation that the code knows better: `make docs`.

A part stands between `<!-- NAME: made by `make docs` -->` and `<!-- end of NAME -->`. `PAGES` says which page has
which.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .api_reference import reference
from .imports import imports_section
from .openapi import openapi
from .settings_table import settings_table

ROOT = Path(__file__).resolve().parents[1]
PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "docs/configuration.md": {"settings": settings_table},
    "docs/api.md": {"reference": lambda: reference(openapi())},
    "docs/design.md": {"imports": imports_section},
}


def render(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """Return a page's text with every generated part made anew. Raises ValueError where a part has no place."""
    for name, make in parts.items():
        text = _put(text, name, make())
    return text


def _put(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: made by `make docs` -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page has {text.count(begin)} parts named {name}, not 1")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def main() -> int:
    for page, parts in PAGES.items():
        path = ROOT / page
        path.write_text(render(path.read_text(encoding="utf-8"), parts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
