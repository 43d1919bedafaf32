"""The loader's thread: in order, apart from the caller's, and errors reach the caller."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from peftserve.adapters.errors import InvalidAdapter
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
    loader = AdapterLoader(compiler, arena)
    yield loader
    compiler.go.set()
    loader.close()


def test_the_caller_does_not_wait(loader: AdapterLoader, compiler: Compiler) -> None:
    fetch = loader.fetch("7")
    assert not fetch.done()
    compiler.go.set()
    assert fetch.result(PATIENCE).data.tolist() == [7.0] * 4
    assert compiler.threads[0].startswith("adapter-loader")


def test_a_copy_fills_its_range_and_nothing_else(
    loader: AdapterLoader, make_blob: MakeBlob, arena: torch.Tensor
) -> None:
    loader.copy([(make_blob(4, 3.0).data, 8)]).result(PATIENCE)
    assert arena[8:12].tolist() == [3.0] * 4
    assert arena.isnan().sum() == 12


def test_work_is_done_in_the_order_asked_for(loader: AdapterLoader, compiler: Compiler) -> None:
    order: list[int] = []
    first = loader.fetch("1")
    tasks = [loader.submit(lambda i=i: order.append(i)) for i in range(5)]  # type: ignore[misc]
    assert not any(task.done() for task in tasks)
    compiler.go.set()
    tasks[-1].result(PATIENCE)
    assert first.done()
    assert order == [0, 1, 2, 3, 4]


def test_an_error_reaches_the_caller_and_the_next_load_works(loader: AdapterLoader, compiler: Compiler) -> None:
    compiler.go.set()
    assert isinstance(loader.fetch("broken").exception(PATIENCE), InvalidAdapter)
    assert loader.fetch("1").exception(PATIENCE) is None


def test_closing_gives_up_what_has_not_begun(loader: AdapterLoader, compiler: Compiler) -> None:
    first, second = loader.fetch("1"), loader.fetch("2")
    while not first.running():
        pass
    closing = threading.Thread(target=loader.close)
    closing.start()
    while not second.cancelled():
        pass
    compiler.go.set()
    closing.join(PATIENCE)
    assert first.done()
