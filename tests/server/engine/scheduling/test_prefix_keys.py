"""Two prefixes have one key only if everything that their keys and values depend on is equal."""

from hypothesis import example, given
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.prefix_keys import next_key, root_key
from peftserve.server.wire.messages import WeightedAdapter

texts = st.text(alphabet="a1:*.\n,0'\"\\\ud800", max_size=8)
mixtures = st.lists(st.builds(WeightedAdapter, texts, st.sampled_from([1.0, 0.5, -1.0, 10.0])), max_size=3)
pages = st.lists(st.lists(st.integers(-1, 2**40), min_size=2, max_size=2), min_size=1, max_size=3)


def chain(salt: str, adapters: list[WeightedAdapter], tokens: list[list[int]]) -> bytes:
    key = root_key(salt, adapters)
    for page in tokens:
        key = next_key(key, page)
    return key


@given(texts, mixtures, pages, texts, mixtures, pages)
@example("", [WeightedAdapter("a*1.0\na")], [[1, 2]], "", [WeightedAdapter("a"), WeightedAdapter("a")], [[1, 2]])
@example("", [], [[1, 2], [3, 4]], "", [], [[1, 2, 3, 4]])
def test_keys_are_equal_only_for_equal_prefixes(
    salt: str,
    adapters: list[WeightedAdapter],
    tokens: list[list[int]],
    other_salt: str,
    other_adapters: list[WeightedAdapter],
    other_tokens: list[list[int]],
) -> None:
    same = (salt, adapters, tokens) == (other_salt, other_adapters, other_tokens)
    assert (chain(salt, adapters, tokens) == chain(other_salt, other_adapters, other_tokens)) == same


def test_each_of_salt_digest_weight_and_tokens_counts() -> None:
    part = WeightedAdapter("digest", 0.5)
    roots = [
        root_key("", []),
        root_key("tenant", []),
        root_key("", [part]),
        root_key("", [WeightedAdapter("digest", 0.25)]),
        root_key("", [WeightedAdapter("other", 0.5)]),
        root_key("", [part, part]),
        root_key("tenant", [part]),
    ]
    keys = [next_key(root, tokens) for root in roots for tokens in ([1, 2], [2, 1], [1, 3])]
    assert len({*roots, *keys}) == len(roots) + len(keys)
    assert root_key("", [part]) == root_key("", [WeightedAdapter("digest", 0.5)])
