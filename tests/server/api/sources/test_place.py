import pytest

from peftserve.server.api.sources.place import Place, SourceFailed, check_path, origin_of, parse_place


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("huggingface://owner/name", "hub"),
        ("hub://owner/name", "hub"),
        ("HF://owner/name", "hub"),
        ("s3://bucket/a/b", "s3"),
        ("gs://bucket/a", "gs"),
        ("gcs://bucket/a", "gs"),
        ("https://host/a", "http"),
        ("http://host/a", "http"),
        ("/srv/adapters/sql", "path"),
        ("./adapters/sql", "path"),
        ("../owner/name", "path"),
        ("sql", "path"),
        ("owner/name", "hub"),
        ("owner/name/sub/folder", "hub"),
        ("owner/name@v1.0", "hub"),
    ],
)
def test_places_are_told_by_how_they_are_spelled(text, kind):
    assert parse_place(text, hub_ids=True) == Place(kind, text)


def test_what_is_no_place_is_told():
    assert parse_place("owner/name").type == "path"
    assert parse_place("file:///srv/sql") == Place("path", "/srv/sql")
    for text in ("ftp://host/a", "javascript://x"):
        with pytest.raises(SourceFailed, match="no kind of source"):
            parse_place(text)
    for path in ("a//b", "a/../b", "./a", "a\0b", "a\\b", "a\nb"):
        with pytest.raises(SourceFailed, match="no name"):
            check_path(path)
    assert check_path("/a b/ü/") == "a b/ü"


def test_origins_hold_no_secrets_and_no_folders_of_the_server():
    assert origin_of(Place("http", "https://h/a?sig=secret"), '"tag"') == {
        "kind": "source",
        "type": "http",
        "uri": "https://h/a",
        "resolved": '"tag"',
    }
    hub = origin_of(Place("hub", "owner/name", "main"), "c0ffee")
    assert (hub["revision"], hub["resolved"]) == ("main", "c0ffee")
    assert origin_of(Place("path", "/srv/secret/sql"), None) == {"kind": "source", "type": "path", "uri": "sql"}
