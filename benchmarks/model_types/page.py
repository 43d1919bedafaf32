"""The table of a page of the documentation, between two marks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..records import Record
from ..tables import markdown

HEADINGS = {"base": "base", "LoRA": "LoRA, all linears", "IA3": "IA3", "DoRA": "DoRA"}
BEGIN, END = "<!-- model types: begin -->", "<!-- model types: end -->"


def write_table(path: Path, records: Sequence[Record]) -> None:
    """Replace what is between the marks of a page. Raises ValueError if it has none."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no marks {BEGIN} and {END}")
    table = "\n".join(table_lines(records))
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def table_lines(records: Sequence[Record]) -> Iterator[str]:
    """Yield the table's lines: the verdicts of a type, and a reason where one is not exact."""
    rows = ([f"`{record['type']}`", *_cells(record["verdicts"])] for record in records)
    return markdown(["type", *HEADINGS.values(), "reason"], rows)


def _cells(verdicts: Mapping[str, str]) -> list[str]:
    said = [verdicts.get(name, verdicts["base"]) for name in HEADINGS]
    reasons = dict.fromkeys(verdict.partition(": ")[2] for verdict in said if verdict != "exact")
    return [*(verdict.partition(":")[0] for verdict in said), _in_a_cell("; ".join(reasons))]


def _in_a_cell(text: str) -> str:
    """Return a text as a table of Markdown shows it, where a bar would be a border and `<` a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")
