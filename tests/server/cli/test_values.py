from pathlib import Path

import pytest

from peftserve.server.cli import values


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


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999", "much", ""])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="is no number"):
        values.finite(text)


def test_numbers_of_any_sign() -> None:
    assert [values.finite(text) for text in ("-2.5", "0", "1e3")] == [-2.5, 0, 1000]


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


def test_a_template_is_a_file_or_its_own_source(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert values.template_source(str(file)) == file.read_text() == values.template_source(file.read_text())
    with pytest.raises(ValueError, match="cannot be read as a file"):
        values.template_source(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"is no template: .*line 1"):
        values.template_source("{% for %}")


def test_origins_come_with_commas_or_as_vllms_list() -> None:
    assert values.origins("https://A.example, http://localhost:3000") == ("https://a.example", "http://localhost:3000")
    assert values.origins('["*"]') == ("*",)
    assert values.names("GET,POST") == ("GET", "POST")


@pytest.mark.parametrize(
    "text", ["a.example", "https://a.example/", "https://a,", '["https://a", 1]', "[", "https://a/b"]
)
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match=r"no origin|empty name|list of names|not JSON"):
        values.origins(text)


def test_prefixes_of_proxies() -> None:
    assert [values.root_path(text) for text in ("/llm/", "llm", "/a/b", "/", " ")] == ["/llm", "/llm", "/a/b", "", ""]
    for text in ("/a?b", "/ü", "//a//b", "/a b"):
        with pytest.raises(ValueError, match="is not a path"):
            values.root_path(text)


def test_addresses() -> None:
    assert values.url("http://127.0.0.1:4318") == "http://127.0.0.1:4318"
    for text in ("127.0.0.1:4318", "grpc://a:4317", "http://", "http://a b"):
        with pytest.raises(ValueError, match="is not an address"):
            values.url(text)


def test_hosts_are_names_without_ports_and_networks_are_addresses() -> None:
    assert values.hosts("Box.example, *.lan,::1,*") == ("box.example", "*.lan", "::1", "*")
    for text in ("box:80", "http://box", "a b", "*.", "a.*"):
        with pytest.raises(ValueError, match=r"no name of a machine|empty"):
            values.hosts(text)
    assert values.networks('["10.0.0.0/8", "*"]') == ("10.0.0.0/8", "*")
    with pytest.raises(ValueError, match="no address"):
        values.networks("10.0.0.0/8,box")
