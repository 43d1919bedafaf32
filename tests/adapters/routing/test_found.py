import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.names import VersionRef
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.routing.found import Found, Hop, check_sum, weighted_sum


def record(name: str, version: int = 1, digest: str = "1", **primitives: int) -> AdapterRecord:
    facts = AdapterFacts("LORA", 8, 100, primitives or {"low_rank": 2}, 2, 4)
    return AdapterRecord(VersionRef(name, version, digest * 64), 0.0, facts)


A, B = record("a"), record("b", digest="2")


def test_a_sum_adds_up_versions_that_come_twice_and_keeps_all_hops() -> None:
    one = Found(((A, 1.0),), (Hop("r", 1),))
    two = Found(((A, 0.5), (B, 2.0)), (Hop("s", 3),))
    total = weighted_sum([(one, 0.5), (two, 0.25), (Found(), 7.0)])
    assert total.parts == ((A, 0.625), (B, 0.5))
    assert [hop.route for hop in total.hops] == ["r", "s"]
    assert weighted_sum([(two, 1)]) is two


def test_what_cannot_be_added_up_is_refused() -> None:
    prefix = record("p", digest="3", kv_prefix=1)
    check_sum([(prefix, 1.0)])
    check_sum([(A, 0.5), (B, -1.0)])
    with pytest.raises(InvalidAdapter, match="p@1 has a KV prefix, which no weight scales"):
        check_sum([(prefix, 0.5)])
    with pytest.raises(InvalidAdapter, match="p@1 has a KV prefix and cannot be mixed"):
        check_sum([(A, 0.5), (prefix, 1.0)])
    other = record("q", digest="3", kv_prefix=1)  # of one content, and so one adapter of weight 1
    check_sum([(prefix, 0.25), (other, 0.75)])
