from peftserve.adapters.catalogue import Wanted, list_newest
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.registry import AdapterRegistry

NUMBER = 10_000


def test_ten_thousand_adapters_are_paged_by_what_is_wanted(registry: AdapterRegistry, facts: AdapterFacts) -> None:
    """The same as a look at all of them gives."""
    with registry.transaction() as db:
        db.executemany(
            "INSERT INTO versions VALUES (?, ?, ?, 0, ?, '{}', '')",
            ((f"n{i:05}", v, f"{2 * i + v:064x}", facts.to_json()) for i in range(NUMBER) for v in (1, 2)),
        )
        db.executemany(
            "INSERT INTO documents VALUES ('settings', ?, 1, 0, ?, '')",
            ((f"n{i:05}", f'{{"tags": ["t{i % 7}", "u{i % 5}"]}}') for i in range(NUMBER)),
        )
    among = {f"{2 * i + 2:064x}" for i in range(0, NUMBER, 3)}
    for wanted, chosen in (
        (Wanted(), lambda i: True),
        (Wanted(tags=("t3", "u2")), lambda i: i % 7 == 3 and i % 5 == 2),
        (Wanted(prefix="n07", after="n07100"), lambda i: 7100 < i < 8000),
        (Wanted(method="IA3"), lambda i: False),
        (Wanted(method="LORA", among=among), lambda i: i % 3 == 0),
        (Wanted(not_among=among, tags=("t0",)), lambda i: i % 3 and i % 7 == 0),
    ):
        expected = [f"n{i:05}" for i in range(NUMBER) if chosen(i)]
        for limit in (None, 1, 50, len(expected) or 1):
            records, has_more = list_newest(registry, wanted, limit)
            assert [record.name for record in records] == expected[:limit]
            assert {record.version for record in records} <= {2}
            assert has_more == (limit is not None and len(expected) > limit)
