from benchmarks.tables import Table, aligned, markdown


def test_lines_stand_under_their_heading() -> None:
    table = Table({"name": "<6", "ms": "8.2f", "rows": "6"})
    assert table.heading() == "name        ms  rows"
    assert table.line("a", 1.234, 12) == "a         1.23    12"
    assert table.line("a", None, "many") == "a               many"
    assert table.line("a") == "a     "


def test_a_whole_table_is_as_wide_as_its_cells() -> None:
    assert aligned(["x", "ms"], [["long", "1"], ["b", "100"]]).splitlines() == ["x      ms", "long    1", "b     100"]


def test_markdown() -> None:
    assert list(markdown(["a", "b"], [[1, "x"]])) == ["| a | b |", "| --- | --- |", "| 1 | x |"]
