"""The README.md of a merged checkpoint: what went into it, so that it can be made again."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from .members import Member

_LICENSE = ("license", "license_name", "license_link")


def model_card(base: str, source: Path, members: Sequence[Member]) -> str:
    """Return the text of the model card. base: the name of the base. source: its folder, for its licence."""
    head = ["---", "library_name: transformers", f"base_model: {json.dumps(base)}", "base_model_relation: merge"]
    head += [*_licence(source), "tags:", "- merge", "- peftserve", "---"]
    rows = [
        f"| `{one.name}` | {one.weight:g} | {one.facts.method} | {one.facts.rank or '-'} | `{one.digest}` |"
        for one in members
    ]
    table = ["| adapter | weight | method | rank | digest |", "| --- | --- | --- | --- | --- |", *rows]
    text = [
        f"# {base}, merged",
        "",
        f"The weights of `{base}` with PEFT adapters in them: each module's output is the base's and the weighted sum "
        "of what the adapters add to it, as it is when they are served beside the base.",
        "",
        *table,
        "",
        f"Made by `peftserve merge` of peftserve {version('peftserve')}. A digest is the SHA-256 over the lines "
        "`<file> <SHA-256>` of an adapter's files.",
    ]
    return "\n".join([*head, "", *text, ""])


def _licence(source: Path) -> list[str]:
    """Return what the base's own model card says of its licence."""
    try:
        lines = (source / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return []
    front = lines[1 : lines.index("---", 1)]
    return [line for line in front if line.partition(":")[0] in _LICENSE]
