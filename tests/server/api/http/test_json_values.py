import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.api.http.json_values import count_values

VALUES = st.recursive(
    st.none() | st.integers() | st.text('ab"\\,[{é', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('k"\\[,', max_size=4), inner, max_size=4),
    max_leaves=20,
)


def _count(value):
    """(values, containers, strings) as a parser makes them."""
    if isinstance(value, str):
        return 1, 0, 1
    if not isinstance(value, list | dict):
        return 1, 0, 0
    inner = [_count(entry) for entry in (value.values() if isinstance(value, dict) else value)]
    keys = len(value) if isinstance(value, dict) else 0
    values, containers, strings = (sum(column) for column in zip((0, 0, 0), *inner, strict=True))
    return values + 1, containers + 1, strings + keys


@given(VALUES, st.integers(1, 40), st.booleans())
def test_a_parser_makes_no_more_than_was_counted(value, slice_bytes, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    values, containers, strings = _count(value)
    *_, counted = count_values(data, slice_bytes)
    assert (counted.containers, counted.strings) == (containers, strings)
    assert values <= counted.values <= values + containers  # an empty list counts as if it held something


@pytest.mark.parametrize("data", [b"", b'"', b"\\", b'\\"\\', b'["\\', b"]]]]", b'"' * 7])
def test_what_is_no_json_is_counted_all_the_same(data):
    counted = [*count_values(data, 1)]
    assert counted == sorted(counted)
    assert bool(counted) == bool(data)


def test_a_long_text_is_counted_in_slices():
    counted = [*count_values(b'["' + b'\\"[,' * 1000 + b'"]', 100)]
    assert len(counted) > 30
    assert counted[-1] == (2, 1, 1)
