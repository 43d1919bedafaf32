"""What another rank does with adapters: at the places that it is told, with an answer when it is done."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from peftserve.server.engine.adapters.packing import Blob
from peftserve.server.engine.adapters.service import AdapterService
from peftserve.server.engine.parallel import messages
from peftserve.server.engine.parallel.follower import FollowedAdapters
from peftserve.server.engine.parallel.messages import Loaded


class FakeService:
    """An adapter service whose work ends when the test says so. did: what was done, in order."""

    def __init__(self) -> None:
        self.fetches: dict[str, Future[Blob]] = {}
        self.loads: dict[int, Future[str]] = {}
        self.did: list[tuple[Any, ...]] = []
        self.residency = self.attachments = self

    def fetch(self, key: str, folder: Path) -> Future[Blob]:
        self.did.append(("fetch", key, folder))
        return self.fetches.setdefault(key, Future())

    def load_at(self, blob: Blob, start: int) -> Future[str]:
        self.did.append(("load", blob, start))
        return self.loads.setdefault(start, Future())

    def keep(self, key: str, blob: Blob) -> None:
        self.did.append(("keep", key, blob))

    def attach(self, slot: int, prepared: str) -> None:
        self.did.append(("attach", slot, prepared))

    def detach(self, slot: int) -> None:
        self.did.append(("detach", slot))

    def drop(self, digest: str) -> None:
        self.did.append(("drop", digest))


def test_an_adapter_is_fetched_loaded_and_attached_as_told() -> None:
    service, blob = FakeService(), cast(Blob, "blob")
    adapters = FollowedAdapters(cast(AdapterService, service))
    adapters.load(messages.Load("digest", "/store/digest", 3, 64))
    assert adapters.is_busy()
    assert adapters.poll() == []
    service.fetches["digest"].set_result(blob)
    assert adapters.poll() == []
    service.loads[64].set_result("prepared")
    assert adapters.poll() == [Loaded(3, "digest")]
    assert not adapters.is_busy()
    adapters.attach(3)
    adapters.detach(3)
    adapters.forget("digest")
    assert service.did == [
        ("fetch", "digest", Path("/store/digest")),
        ("keep", "digest", blob),
        ("load", blob, 64),
        ("attach", 3, "prepared"),
        ("detach", 3),
        ("drop", "digest"),
    ]


def test_what_fails_is_answered_with_the_reason() -> None:
    service = FakeService()
    adapters = FollowedAdapters(cast(AdapterService, service))
    adapters.load(messages.Load("gone", "/store/gone", 3, 64))
    adapters.load(messages.Load("large", "/store/large", 4, 96))
    service.fetches["gone"].set_exception(ValueError("no files"))
    service.fetches["large"].set_result(cast(Blob, "blob"))
    assert adapters.poll() == [Loaded(3, "gone", "ValueError: no files")]
    service.loads[96].set_exception(MemoryError("no room"))
    assert adapters.poll() == [Loaded(4, "large", "MemoryError: no room")]
    assert not adapters.is_busy()
