import json

import msgspec
import pytest

from peftserve.adapters.facts import AdapterFacts

# As the first release with every field stored it.
STORED = """{"method": "IA3", "rank": 0, "num_bytes": 96, "primitives": {"input_scale": 2, "kv_prefix": 1}, "sites": 2,
"consumed": 4, "exclusive": ["KV prefix"], "num_tasks": 3, "virtual_tokens": 20, "vocabulary": 1001,
"inputs": ["layers.*.mlp.down_proj"], "outputs": ["norm"]}"""
FACTS = AdapterFacts(
    method="IA3",
    rank=0,
    num_bytes=96,
    primitives={"input_scale": 2, "kv_prefix": 1},
    sites=2,
    consumed=4,
    exclusive=("KV prefix",),
    num_tasks=3,
    virtual_tokens=20,
    vocabulary=1001,
    inputs=("layers.*.mlp.down_proj",),
    outputs=("norm",),
)


def test_what_releases_have_stored_is_read_and_stored_alike() -> None:
    assert AdapterFacts.from_json(STORED) == FACTS
    assert json.loads(FACTS.to_json()) == json.loads(STORED)
    assert AdapterFacts.from_json(FACTS.to_json()) == FACTS


def test_an_older_release_stored_fewer_fields_and_a_newer_one_may_store_more() -> None:
    first = {name: json.loads(STORED)[name] for name in AdapterFacts.__struct_fields__[:6]}
    facts = AdapterFacts.from_json(json.dumps({**first, "of_a_newer_release": [1]}))
    assert facts == AdapterFacts("IA3", 0, 96, {"input_scale": 2, "kv_prefix": 1}, 2, 4)
    assert (facts.exclusive, facts.num_tasks, facts.vocabulary, facts.inputs) == ((), 0, 0, ())


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"method": 3}', STORED.replace("96", '"96"')])
def test_other_texts_are_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        AdapterFacts.from_json(text)


def test_they_cross_from_the_engine_as_they_are() -> None:
    encoded = msgspec.msgpack.encode(FACTS)
    assert msgspec.msgpack.decode(encoded, type=AdapterFacts) == FACTS
