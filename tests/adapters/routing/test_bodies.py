import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.routing.bodies import Alias, Arm, Fallback, Member, Mixture, Ramp, Split, parse_body

ARMS = '"arms": [{"target": "a", "weight": 0.9}, {"target": "b@2", "weight": 0}]'

HUGE = '{"target": "a", "weight": 1e308}'


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ('{"kind": "alias", "target": "a"}', Alias("a")),
        (f'{{"kind": "split", {ARMS}}}', Split((Arm("a", 0.9), Arm("b@2", 0.0)))),
        (
            f'{{"kind": "split", {ARMS}, "sticky": "header:x-tenant", "salt": "spring", "shadow": "c", '
            '"ramp": {"arm": 1, "from": 0.01, "to": 0.5, "seconds": 3600}}',
            Split((Arm("a", 0.9), Arm("b@2", 0.0)), "header:x-tenant", "spring", Ramp(1, 0.01, 0.5, 3600.0), "c"),
        ),
        ('{"kind": "mixture", "adapters": [{"name": "a", "weight": -1}]}', Mixture((Member("a", -1.0),))),
        ('{"kind": "fallback", "targets": ["a", "b"]}', Fallback(("a", "b"))),
    ],
)
def test_each_kind(text: str, body: object) -> None:
    assert parse_body(text) == parse_body(text.encode()) == body


@pytest.mark.parametrize(
    ("text", "message", "param"),
    [
        ("{", "is no JSON", "body"),
        (b"\xff", "is no JSON", "body"),
        ("[" * 100_000, "body", "body"),
        ("{}", "the kind is one of alias, split, match, mixture, fallback", "body"),
        ('{"kind": "dice"}', "the kind is one of alias, split, match, mixture, fallback", "body"),
        ('{"kind": "alias", "target": 3}', r"target", "body"),
        ('{"kind": "alias", "target": ""}', r"target", "body"),
        ('{"kind": "alias", "target": "a", "targets": []}', "unknown field `targets`", "body"),
        ('{"kind": "split", "arms": []}', r"\$\.arms", "body"),
        ('{"kind": "split", "arms": [{"target": "a", "weight": 1e999}]}', "arms|Number out of range|JSON", None),
        ('{"kind": "split", "arms": [{"target": "a", "weight": 0}]}', "sum over 0", "arms"),
        (f'{{"kind": "split", "arms": [{HUGE}, {HUGE}]}}', "sum over 0", "arms"),
        (f'{{"kind": "split", {ARMS}, "sticky": "header:"}}', "sticky is", "sticky"),
        (f'{{"kind": "split", {ARMS}, "sticky": "header:x y"}}', "sticky is", "sticky"),
        (f'{{"kind": "split", {ARMS}, "sticky": "users"}}', "sticky is", "sticky"),
        (f'{{"kind": "split", {ARMS}, "ramp": {{"arm": 2, "from": 0, "to": 1, "seconds": 1}}}}', "2 arms", "ramp"),
        (f'{{"kind": "split", {ARMS}, "ramp": {{"arm": 0, "from": 0, "to": 2, "seconds": 1}}}}', "to", "body"),
        (f'{{"kind": "split", {ARMS}, "ramp": {{"arm": 0, "from": 0, "to": 1, "seconds": 0}}}}', "seconds", "body"),
        ('{"kind": "mixture", "adapters": [{"name": "a", "weight": 1e5}]}', "weight of 'a'", "adapters"),
        ('{"kind": "mixture", "adapters": []}', "adapters", "body"),
        ('{"kind": "fallback", "targets": []}', "targets", "body"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str | bytes, message: str, param: str | None) -> None:
    with pytest.raises(InvalidAdapter, match=message) as error:
        parse_body(text)
    assert param in (None, error.value.param)


def test_a_mixture_has_as_many_members_as_one_in_a_request() -> None:
    members = ", ".join(f'{{"name": "a{n}", "weight": 1}}' for n in range(9))
    with pytest.raises(InvalidAdapter, match="adapters"):
        parse_body(f'{{"kind": "mixture", "adapters": [{members}]}}')
