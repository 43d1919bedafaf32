import pytest

from peftserve.server.sizes import parse_size, show_size


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
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2XB", "2 GiB more", "0", "0.0001", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1B", "1023B", "1KiB", "1025B", "1536MiB", "4GiB", "3TiB"])
def test_sizes_are_shown_as_they_are_read(text: str) -> None:
    assert show_size(parse_size(text)) == text.removesuffix("B" if text[-2].isdigit() else "")
