"""Names, versions and files of an offline engine's adapters, on an engine that only notes what it is asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from peftserve.adapters.errors import AdapterConflict, AdapterNotFound, InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.store import AdapterStore
from peftserve.server.offline.adapters import NamedAdapters


class NotingEngine:
    def __init__(self) -> None:
        self.inspected: list[str] = []
        self.released: list[str] = []

    def inspect_adapter(self, digest: str, folder: Path) -> AdapterFacts:
        if (folder / "adapter_model.safetensors").read_bytes() == b"bad":
            raise InvalidAdapter("it is bad")
        self.inspected.append(digest)
        return AdapterFacts(method="LORA", rank=4, num_bytes=1, primitives={}, sites=1, consumed=2)

    def release_adapter(self, digest: str) -> None:
        self.released.append(digest)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    store = AdapterStore(tmp_path / "state")
    yield store
    store.close()


@pytest.fixture
def engine() -> NotingEngine:
    return NotingEngine()


@pytest.fixture
def adapters(engine: NotingEngine, store: AdapterStore) -> NamedAdapters:
    return NamedAdapters(cast(Any, engine), store, "base")


def folder(tmp_path: Path, content: str) -> Path:
    """A folder with an adapter's two files, and one more, as PEFT saves them."""
    path = tmp_path / content
    path.mkdir(exist_ok=True)
    for name, text in (("adapter_config.json", "{}"), ("adapter_model.safetensors", content), ("README.md", "#")):
        (path / name).write_text(text)
    return path


def test_a_name_has_versions_and_equal_content_is_compiled_once(
    tmp_path: Path, adapters: NamedAdapters, engine: NotingEngine
) -> None:
    first, second = adapters.add("x", folder(tmp_path, "one")), adapters.add("x", folder(tmp_path, "two"))
    again = adapters.add("y", folder(tmp_path, "one"))
    assert [str(record.ref) for record in (first, second, again)] == ["x@1", "x@2", "y@1"]
    assert engine.inspected == [first.digest, second.digest]
    assert again.digest == first.digest
    assert adapters.resolve("x").weights() == {second.digest: 1.0}
    assert adapters.resolve("x@1").weights() == {first.digest: 1.0}
    assert adapters.resolve({"x": 0.5, "y": 2.0}).weights() == {second.digest: 0.5, first.digest: 2.0}
    assert adapters.resolve(None).weights() == adapters.resolve("base").weights() == {}


def test_what_other_names_have_stays_when_one_goes(
    tmp_path: Path, adapters: NamedAdapters, engine: NotingEngine, store: AdapterStore
) -> None:
    first, second = adapters.add("x", folder(tmp_path, "one")), adapters.add("x", folder(tmp_path, "two"))
    adapters.add("y", folder(tmp_path, "one"))
    adapters.remove("x")
    assert (engine.released, adapters.names()) == ([second.digest], ["y"])
    assert (store.has(first.digest), store.has(second.digest)) == (True, False)
    with pytest.raises(AdapterNotFound):
        adapters.remove("x")
    with pytest.raises(AdapterNotFound):
        adapters.resolve("y@2")


def test_what_cannot_be_registered_leaves_nothing(tmp_path: Path, adapters: NamedAdapters, store: AdapterStore) -> None:
    with pytest.raises(InvalidAdapter, match="it is bad"):
        adapters.add("x", folder(tmp_path, "bad"))
    with pytest.raises(InvalidAdapter, match="no readable adapter_config"):
        adapters.add("x", tmp_path)
    with pytest.raises(AdapterConflict):
        adapters.add("base", folder(tmp_path, "one"))
    with pytest.raises(InvalidAdapter):
        adapters.add("no name", folder(tmp_path, "one"))
    assert (adapters.names(), list(store.digests())) == ([], [])


def test_a_copy_answers_when_the_folder_has_gone(tmp_path: Path, adapters: NamedAdapters, store: AdapterStore) -> None:
    source = folder(tmp_path, "one")
    record = adapters.add("x", source)
    (source / "adapter_model.safetensors").write_text("another")
    assert store.is_whole(record.digest)
