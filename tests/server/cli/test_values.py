from pathlib import Path

import pytest

from peftserve.server.cli import values


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GiB", 2 << 30),
        ("512MB", 512_000_000),
        ("2G", 2_000_000_000),
        ("64 KiB", 65536),
        ("1.5gib", 3 << 29),
        ("7", 7),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert values.size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2XB", "2 GiB more", "0", "0.0001", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        values.size(text)


@pytest.mark.parametrize("text", ["0", "65536", "1.5", "ten", "", "0x10", "1e3", "tcp://10.0.0.1:80"])
def test_whole_numbers_have_a_span(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 1 to 65535"):
        values.whole(1, 65535)(text)


def test_whole_number_without_an_upper_end() -> None:
    assert values.whole(1)("1_000_000") == 1_000_000
    with pytest.raises(ValueError, match="of 1 or more"):
        values.whole(1)("-5")


@pytest.mark.parametrize("text", ["yes", "True", "1", "on"])
def test_true(text: str) -> None:
    assert values.boolean(text) is True


def test_neither_true_nor_false() -> None:
    with pytest.raises(ValueError, match="neither true nor false"):
        values.boolean("maybe")


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "soon"])
def test_what_is_no_number_of_seconds(text: str) -> None:
    with pytest.raises(ValueError, match="seconds"):
        values.seconds(text)


def test_seconds_may_have_a_unit() -> None:
    assert values.seconds("2.5s") == values.seconds("2.5") == 2.5


@pytest.mark.parametrize("text", ["a=/x=y", '{"name": "a", "path": "/x=y", "base_model_name": "b"}'])
def test_named_paths(text: str) -> None:
    assert values.named_path(text) == ("a", Path("/x=y"))


@pytest.mark.parametrize("text", ["a", "=x", "a=", "{", '{"name": "a"}', '{"name": "", "path": "x"}', '{"name": 1}'])
def test_what_is_no_named_path(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        values.named_path(text)


@pytest.mark.parametrize("text", ["1B", "1023B", "1KiB", "1025B", "1536MiB", "4GiB", "3TiB"])
def test_sizes_are_shown_as_they_are_read(text: str) -> None:
    assert values.show_size(values.size(text)) == text.removesuffix("B" if text[-2].isdigit() else "")
