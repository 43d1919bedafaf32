import pytest

from peftserve.server.cli.load.names import expand, renames


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("ad{0..3}", ["ad0", "ad1", "ad2", "ad3"]),
        ("x{08..10}y,z", ["x08y", "x09y", "x10y", "z"]),
        ("{0..1}-{1..2}", ["0-1", "0-2", "1-1", "1-2"]),
        ("a{3..2}", []),
        ("a{b}", ["a{b}"]),
        ("", []),
    ],
)
def test_expand(text: str, expected: list[str]) -> None:
    assert expand(text) == expected


def test_renames() -> None:
    assert renames(["a{0..1}=/b/{5..6}", "c=d"]) == {"a0": "/b/5", "a1": "/b/6", "c": "d"}


@pytest.mark.parametrize("pair", ["a", "a{0..1}=b", "=b", "a="])
def test_what_renames_nothing(pair: str) -> None:
    with pytest.raises(ValueError, match="is not OLD=NEW"):
        renames([pair])
