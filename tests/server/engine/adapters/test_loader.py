"""The loader's threads: apart from the caller's and from each other, and errors reach the caller."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from peftserve.adapters.errors import InvalidAdapter
from peftserve.server.engine.adapters.copies import Copy, HostCopies, Pieces
from peftserve.server.engine.adapters.loader import AdapterLoader
from peftserve.server.engine.adapters.packing import Blob

MakeBlob = Callable[[int, float], Blob]
PATIENCE = 30


class Compiler:
    """Waits for `go`, then makes a blob of the key's number, or says that it is invalid."""

    def __init__(self, make_blob: MakeBlob) -> None:
        self.make_blob = make_blob
        self.go = threading.Event()
        self.threads: list[str] = []

    def __call__(self, key: str) -> Blob:
        assert self.go.wait(PATIENCE)
        self.threads.append(threading.current_thread().name)
        if key == "broken":
            raise InvalidAdapter("no tensor in it")
        return self.make_blob(4, float(key))


@pytest.fixture
def compiler(make_blob: MakeBlob) -> Compiler:
    return Compiler(make_blob)


@pytest.fixture
def arena() -> torch.Tensor:
    return torch.full((16,), float("nan"))


@pytest.fixture
def loader(compiler: Compiler, arena: torch.Tensor) -> Iterator[AdapterLoader]:
    loader = AdapterLoader(compiler, HostCopies(arena))
    yield loader
    compiler.go.set()
    loader.close()


def test_the_caller_does_not_wait(loader: AdapterLoader, compiler: Compiler) -> None:
    fetch = loader.fetch("7")
    assert not fetch.done()
    compiler.go.set()
    assert fetch.result(PATIENCE).data.tolist() == [7.0] * 4
    assert compiler.threads[0].startswith("adapter-loader")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


def test_a_copy_fills_its_range_and_nothing_else(
    loader: AdapterLoader, make_blob: MakeBlob, arena: torch.Tensor
) -> None:
    load = loader.load([(make_blob(4, 3.0).data, 8)], lambda: arena[8:12])
    wait_for(load.done)
    assert load.result().tolist() == [3.0] * 4
    assert arena.isnan().sum() == 12


class Device:
    """Copies that end when the test says so. log: in which order what was asked for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.has_ended = False

    def behind_steps(self) -> Copy:
        self.log.append("steps are marked")
        return self._copy

    def query(self) -> bool:
        return self.has_ended

    def _copy(self, pieces: Pieces) -> "Device":
        self.log.append("copy")
        return self


def test_the_thread_goes_on_while_the_device_copies(compiler: Compiler) -> None:
    compiler.go.set()
    device = Device()
    loader = AdapterLoader(compiler, device)
    try:
        load = loader.load([], lambda: device.log.append("prepare"))
        device.log.append("the caller goes on")
        loader.fetch("1").result(PATIENCE)  # the next adapter is compiled, and the one before is not yet there
        assert not load.done()
        device.has_ended = True
        assert load.done()
    finally:
        loader.close()
    assert device.log[0] == "steps are marked"
    assert [entry for entry in device.log if entry != "the caller goes on"][1:] == ["copy", "prepare"]


def test_what_is_raised_on_the_way_ends_it(loader: AdapterLoader) -> None:
    def fail() -> None:
        raise InvalidAdapter("no such module")

    load = loader.load([], fail)
    wait_for(load.done)
    with pytest.raises(InvalidAdapter, match="no such module"):
        load.result()


def test_what_requests_wait_for_waits_for_no_inspection_and_copies_for_no_compilation(
    loader: AdapterLoader, compiler: Compiler, make_blob: MakeBlob
) -> None:
    """Whoever uploads whatever: an adapter is compiled, and copied to the device, while all inspectors are held."""
    held = threading.Event()
    inspections = [loader.inspect(f"tenant {i % 4}", lambda: held.wait(PATIENCE)) for i in range(8)]
    fetch = loader.fetch("7")  # which is held, too, as yet
    load = loader.load([(make_blob(4, 3.0).data, 0)], lambda: "prepared")
    wait_for(load.done)
    assert not fetch.done()
    compiler.go.set()
    assert fetch.result(PATIENCE).data.tolist() == [7.0] * 4
    assert not any(inspection.done() for inspection in inspections)
    held.set()
    assert all(inspection.result(PATIENCE) for inspection in inspections)


def test_an_error_reaches_the_caller_and_the_next_load_works(loader: AdapterLoader, compiler: Compiler) -> None:
    compiler.go.set()
    assert isinstance(loader.fetch("broken").exception(PATIENCE), InvalidAdapter)
    assert loader.fetch("1").exception(PATIENCE) is None


def test_closing_gives_up_what_has_not_begun(loader: AdapterLoader, compiler: Compiler) -> None:
    inspected = loader.inspect("a", lambda: compiler("3"))
    never = [loader.inspect("a", lambda: compiler("4")) for _ in range(3)]
    first, second = loader.fetch("1"), loader.fetch("2")
    while not (first.running() and inspected.running()):
        pass
    closing = threading.Thread(target=loader.close)
    closing.start()
    while not second.cancelled():
        pass
    compiler.go.set()
    closing.join(PATIENCE)
    assert first.done()
    assert inspected.done()
    assert all(inspection.cancelled() for inspection in never)
