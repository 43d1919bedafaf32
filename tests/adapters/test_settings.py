import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.merge_patch import merge_patch
from peftserve.adapters.settings import MAX_METADATA_BYTES, Settings, parse_settings, read_settings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(fields=st.dictionaries(st.sampled_from(["pinned", "ttl", "tags", "metadata", "other"]), VALUES))
def test_whatever_is_taken_is_stored_and_read_alike(fields: dict[str, object]) -> None:
    try:
        settings = parse_settings(fields)
    except InvalidAdapter:
        return
    assert read_settings(settings.to_json()) == settings
    assert json.loads(json.dumps(settings.metadata, allow_nan=False)) == settings.metadata


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"pinned": 1}, "pinned"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"ttl": True}, "ttl"),
        ({"tags": "prod"}, "tags"),
        ({"tags": ["x"] * 33}, "tags"),
        ({"tags": ["\ud800"]}, "tags"),
        ({"metadata": {"x": "\ud800"}}, "metadata"),
        ({"metadata": {"x": float("inf")}}, "metadata"),
        ({"metadata": {"x": 10**5000}}, "metadata"),
        ({"metadata": {"x": "y" * MAX_METADATA_BYTES}}, "metadata"),
        ({"owner": "me"}, "owner"),
    ],
)
def test_what_cannot_be_kept_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidAdapter) as error:
        parse_settings(fields)
    assert error.value.param == param


def test_a_bottomless_object_is_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"": deep}
    with pytest.raises(InvalidAdapter, match="nested too deeply"):
        parse_settings({"metadata": deep})
    while deep:  # its own end would be as deep
        deep = deep.popitem()[1]  # type: ignore[assignment]


def test_patches() -> None:
    settings = Settings().patched({"tags": ["a", "b", "a"], "metadata": {"x": {"y": 1, "z": 2}}, "ttl": 5})
    assert settings.tags == ("a", "b")
    changed = settings.patched({"ttl": None, "metadata": {"x": {"y": None}, "w": []}})
    assert changed == Settings(tags=("a", "b"), metadata={"x": {"z": 2}, "w": []})


def test_a_merge_patch_is_that_of_its_standard() -> None:
    """Cases of RFC 7396, appendix A, whose target and patch are objects."""
    for target, patch, result in (
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ):
        assert merge_patch(target, patch) == result
