"""Least recently used first out, by bytes and by number."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.engine.adapters.host_tier import HostTier
from peftserve.server.engine.adapters.packing import Blob

MakeBlob = Callable[[int], Blob]
FLOAT = 4


def test_the_least_recently_used_goes_when_bytes_run_out(make_blob: MakeBlob) -> None:
    tier = HostTier(30 * FLOAT)
    for digest in "abc":
        tier.put(digest, make_blob(10))
    assert tier.get("a") is not None
    tier.put("d", make_blob(5))
    assert tier.keys() == ["c", "a", "d"]
    assert "b" not in tier
    assert tier.get("b") is None


def test_the_least_recently_used_goes_when_there_are_too_many(make_blob: MakeBlob) -> None:
    tier = HostTier(1 << 30, max_count=2)
    for digest in "abc":
        tier.put(digest, make_blob(1))
    assert tier.keys() == ["b", "c"]


def test_what_is_to_be_kept_and_the_new_one_stay(make_blob: MakeBlob) -> None:
    tier = HostTier(10 * FLOAT, max_count=1)
    tier.put("a", make_blob(10))
    tier.put("b", make_blob(100), keep={"a"})
    assert tier.keys() == ["a", "b"]
    tier.put("c", make_blob(1))
    assert tier.keys() == ["c"]


def test_the_same_digest_again_replaces_its_blob(make_blob: MakeBlob) -> None:
    tier = HostTier(100 * FLOAT)
    tier.put("a", make_blob(60))
    tier.put("a", make_blob(80))
    assert tier.num_bytes == 80 * FLOAT
    tier.drop("a")
    tier.drop("a")
    assert tier.num_bytes == 0


operations = st.lists(st.tuples(st.sampled_from(["put", "get", "drop"]), st.sampled_from("abcdef"), st.integers(1, 9)))


@settings(max_examples=80, deadline=None)
@given(operations, st.integers(1, 20), st.none() | st.integers(1, 4))
def test_it_holds_the_most_recently_used_that_fit(
    make_blob: MakeBlob, operations: list[tuple[str, str, int]], most: int, max_count: int | None
) -> None:
    tier = HostTier(most * FLOAT, max_count)
    used: list[tuple[str, int]] = []
    for operation, digest, size in operations:
        entry = next((pair for pair in used if pair[0] == digest), None)
        used = [pair for pair in used if pair[0] != digest]
        if operation == "put":
            tier.put(digest, make_blob(size))
            used.append((digest, size))
            while len(used) > 1 and (sum(s for _, s in used) > most or len(used) > (max_count or 99)):
                del used[0]
        elif operation == "get":
            assert (tier.get(digest) is None) == (entry is None)
            used += [entry] if entry else []
        else:
            tier.drop(digest)
        assert tier.keys() == [digest for digest, _ in used]
        tier.check_integrity()
