"""Records of figures as lines of JSON, each written when it is known: what is stopped loses only what was to come."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(path: Path | None, /, **fields: Any) -> None:
    """Append one line, in one write, so that several processes may share the file.

    Nothing is written if `path` is None.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(fields) + "\n")


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a file that may still be written, or whose writer was stopped within its last line."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
