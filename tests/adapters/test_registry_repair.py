from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.names import Reference, VersionRef
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.registry_repair import parse_row, remove_malformed, replace, restore

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)
ROW = ("a", 3, "f" * 64, 17.5, FACTS.to_json(), "{}", "")


def test_a_row_as_it_is_and_as_bytes() -> None:
    record = AdapterRecord(VersionRef("a", 3, "f" * 64), 17.5, FACTS)
    assert parse_row(ROW) == record
    assert parse_row(tuple(value.encode() if isinstance(value, str) else value for value in ROW)) == record


ANYTHING = st.none() | st.integers() | st.floats() | st.text() | st.binary()


@given(place=st.integers(0, 6), value=ANYTHING)
def test_whatever_stands_in_a_row(place: int, value: Any) -> None:
    """Nothing is raised, and what comes out is what the registry itself would take."""
    record = parse_row((*ROW[:place], value, *ROW[place + 1 :]))
    assert record is None or (record.version > 0 and len(record.digest) == 64 and record.facts == FACTS)


def test_lost_versions_come_back_and_none_is_changed(tmp_path: Path) -> None:
    with closing(AdapterRegistry(tmp_path / "r.sqlite")) as registry:
        kept = registry.add("a", "0" * 64, FACTS)
        lost = AdapterRecord(VersionRef("a", 3, "1" * 64), 1.0, FACTS)
        other = AdapterRecord(VersionRef("a", 1, "2" * 64), 1.0, FACTS)
        restore(registry, [lost, other], {"b": 7}, Reference("a", 3))
        assert registry.versions("a") == [kept, lost]
        assert registry.get_default() == Reference("a", 3)
        assert registry.add("a", "0" * 64, FACTS).version == 4
        assert registry.add("b", "0" * 64, FACTS).version == 8
        replace(registry, [other])
        assert registry.get("a", 1) == other
        registry.check_integrity()


def test_only_malformed_rows_are_taken(tmp_path: Path) -> None:
    with closing(AdapterRegistry(tmp_path / "r.sqlite")) as registry:
        for name in "abc":
            registry.add(name, "0" * 64, FACTS)
        with registry.transaction() as db:
            db.execute("UPDATE versions SET name = CAST(x'ff' AS TEXT) WHERE name = 'b'")
        assert [row[0] for row in remove_malformed(registry)] == [b"\xff"]
        assert [ref.name for ref in registry.refs()] == ["a", "c"]
        assert remove_malformed(registry) == []
        registry.check_integrity()
