import pytest

from peftserve.adapters.errors import AdapterConflict, InvalidAdapter
from peftserve.adapters.names import Reference, check_name, parse_reference


@pytest.mark.parametrize(
    "name", ["a", "7", "sql-v2.1_x", "A" * 128, "org/name", "org/name:v2", "files/of.x", "a/" * 16 + "b"]
)
def test_names_that_are_fine(name: str) -> None:
    check_name(name, {"demo"})
    assert parse_reference(name) == Reference(name)
    assert parse_reference(f"{name}@12") == Reference(name, 12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".a",
        "-a",
        "a b",
        "a@1",
        "../a",
        "a/../b",
        "a/",
        "/a",
        "a//b",
        "a/.b",
        "a:",
        "a/" * 17 + "b",
        "a" * 129,
        "a\n",
        "ä",
        "a\0",
    ],
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(InvalidAdapter, match="is not a name for an adapter or a route"):
        check_name(name)


@pytest.mark.parametrize("name", ["org/files", "org/load/x", "a/b/versions"])
def test_names_that_are_other_paths(name: str) -> None:
    with pytest.raises(InvalidAdapter, match="which means something in the paths of this server"):
        check_name(name)


@pytest.mark.parametrize("name", ["default", "demo"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(AdapterConflict, match="reserved"):
        check_name(name, {"demo"})


@pytest.mark.parametrize("text", ["a@", "a@0", "a@-1", "a@1@2", "a@01", "@1", "a@٣", "a@" + "9" * 30, "a b"])
def test_texts_that_refer_to_nothing(text: str) -> None:
    assert parse_reference(text) is None
