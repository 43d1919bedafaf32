"""The bodies of routes by content: what is taken, and what each refusal says."""

from typing import Any

import msgspec
import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.routing.bodies import MAX_STATES, MAX_TEXT, Match, parse_body
from peftserve.adapters.routing.policies import targets_of

SQL = {"target": "sql", "examples": ["Show all users."], "keywords": ["select"], "description": "SQL"}


def body(*candidates: dict[str, Any], **fields: Any) -> bytes:
    return msgspec.json.encode({"kind": "match", "candidates": candidates or (SQL,), **fields})


def test_a_body_has_defaults_and_names_its_targets() -> None:
    found = parse_body(body())
    assert isinstance(found, Match)
    assert (found.encoder, found.threshold, found.top_k, found.fallback, found.layer) == ("tfidf", 0.3, 1, None, None)
    named = parse_body(body(SQL, {"target": "json@2", "keywords": ["x"]}, fallback="chat"))
    assert targets_of(named) == ["sql", "json@2", "chat"]


def test_a_description_is_an_example_where_there_is_no_other() -> None:
    parts = (
        SQL,
        {"target": "a", "description": "dates"},
        {"target": "b", "examples": ["x", " ", "x"], "keywords": ["y"]},
    )
    found = parse_body(body(*parts))
    assert isinstance(found, Match)
    assert [one.texts for one in found.candidates] == [["Show all users.", "select"], ["dates"], ["x", "y"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (body(candidates=[]), "length >= 1"),
        (body({"target": "a"}), "candidate 0, 'a', has neither examples nor keywords nor a description"),
        (body(SQL, {"target": "b", "examples": [" \n"]}), "candidate 1, 'b', has neither"),
        (body(threshold=1.5), r"<= 1.0.*\$.threshold"),
        (body(top_k=0), r">= 1.*\$.top_k"),
        (body(encoder="bert"), r"'bert'.*\$.encoder"),
        (body({**SQL, "example": ["x"]}), "unknown field `example`"),
        (body(layer=3), 'layer is for the encoder "base" only'),
        (body({"target": "a", "examples": ["x" * 9000]}), "8192 characters each"),
        (body(*({"target": f"a{i}", "examples": [f"{i:05}" * 1600]} for i in range(1 + MAX_TEXT // 8000))), "together"),
        (
            body({"target": "a", "examples": [f"{i}" for i in range(MAX_STATES + 1)]}, encoder="base"),
            f"{MAX_STATES} at most, here are {MAX_STATES + 1}",
        ),
    ],
)
def test_mistakes_are_named(text: bytes, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        parse_body(text)
