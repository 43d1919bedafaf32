"""CUDA graphs on the CPU, as strict as a GPU's, under the names of torch.cuda that the code uses.

A replay knows nothing of the Python that was captured: it does the recorded operators and launches once more on the
memory that they had. So what shows on a GPU shows here:

- A pool dies with the last graph in it, and a capture into a dead one fails as CUDA's allocator does.
- A replay that reads memory which was freed since fails as an illegal access does; one whose buffer was moved reads the
  old one.
- Between replays nothing is in the graph's own memory, new memory holds NaN, and so does an output until a replay.
- Looking at a value while a graph is captured is refused.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any, NamedTuple

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from triton.runtime.interpreter import GridExecutor

DEAD_POOL = "it->second->use_count > 0 INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"
FREED = "CUDA error: an illegal memory access was encountered"
LOOKED = "CUDA error: operation not permitted when stream is capturing"
_LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")
_ALLOCATES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_NAN_BYTE = 255  # NaN in every type of floats, -1 in those of integers


class Place(NamedTuple):
    """A tensor as a kernel knows it: an address, and how to read from there on."""

    storage: StorageWeakRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Work(NamedTuple):
    """One operator, or one launch of a kernel. outputs: of the operator."""

    run: Callable[..., Any]
    args: Any
    kwargs: Any
    outputs: list[Any]


class Pool:
    """The memory of graphs. graphs: how many hold it; None before the first."""

    def __init__(self) -> None:
        self.graphs: int | None = None

    def hold(self) -> None:
        if self.graphs == 0:
            raise RuntimeError(DEAD_POOL)
        self.graphs = (self.graphs or 0) + 1

    def let_go(self) -> None:
        assert self.graphs
        self.graphs -= 1


class Graph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self, cuda: "SimulatedCuda") -> None:
        self._cuda = cuda
        self._work: list[Work] = []
        self._born: set[StorageWeakRef] = set()  # while it was captured
        self._known: set[StorageWeakRef] = set()  # that it is given, its own too
        self._pool = (0, 0)

    def begin(self, pool: tuple[int, int]) -> None:
        self._pool = pool
        self._cuda.pools[pool].hold()
        weakref.finalize(self, self._cuda.pools[pool].let_go)

    def note(self, run: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> None:
        args, kwargs = tree_map(self._place, (args, kwargs))
        known = {p.storage for p in tree_flatten((args, kwargs), _is_place)[0] if _is_place(p)}
        self._known |= known
        outputs = [self._place(tensor) for tensor in tree_flatten(out)[0]]
        self._born |= {p.storage for p in outputs if _is_place(p) and p.storage not in known}
        self._work.append(Work(run, args, kwargs, outputs))

    def end(self) -> None:
        """Fill the outputs with NaN: a capture runs nothing, and leaves any numbers there."""
        for storage in self._born:
            if (there := _upgrade(storage)) is not None:
                there.fill_(_NAN_BYTE)

    def pool(self) -> tuple[int, int]:
        return self._pool

    def addresses(self) -> set[int]:
        """Return the addresses of memory that a replay reads or writes, but for its own and what is freed."""
        there = (_upgrade(storage) for storage in self._known - self._born)
        return {storage.data_ptr() for storage in there if storage is not None}

    def replay(self) -> None:
        self._cuda.replays += 1
        own: dict[StorageWeakRef, torch.UntypedStorage] = {}
        for run, args, kwargs, outputs in self._work:
            args, kwargs = tree_map(lambda v: self._tensor(v, own), (args, kwargs), is_leaf=_is_place)
            found = tree_flatten(run(*args, **kwargs))[0]
            for place, tensor in zip(outputs, found, strict=True):
                if not _is_place(place) or place.storage in own or place.storage not in self._born:
                    continue
                if _upgrade(place.storage) is None:
                    own[place.storage] = tensor.untyped_storage()
                else:
                    _view(place, _upgrade(place.storage)).copy_(tensor)

    def _place(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        try:
            storage = value.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a library's own layout
            return value
        return Place(StorageWeakRef(storage), value.dtype, value.storage_offset(), tuple(value.shape), value.stride())

    def _tensor(self, value: Any, own: dict[StorageWeakRef, torch.UntypedStorage]) -> Any:
        if not _is_place(value):
            return value
        storage = own.get(value.storage) or _upgrade(value.storage)
        if storage is None:
            raise RuntimeError(FREED)
        return _view(value, storage)


class SimulatedCuda:
    """Stands for torch.cuda. captures, replays: how many there have been."""

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.pools: dict[tuple[int, int], Pool] = {}
        self._graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self._ids = count(1)
        self._capturing: Graph | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launch, cuda = GridExecutor.__call__, self

        def noted(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
            cuda.launch(lambda *a, **k: launch(executor, *a, **k), args, kwargs)

        monkeypatch.setattr(GridExecutor, "__call__", noted)
        for name, value in {
            "CUDAGraph": lambda: Graph(self),
            "graph": self._capture,
            "graph_pool_handle": self._new_pool,
            "Stream": _Stream,
            "current_stream": _Stream,
            "stream": lambda _: nullcontext(),
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def launch(self, kernel: Callable[..., None], args: Any, kwargs: Any) -> None:
        """Run or record the launch of a Triton kernel, which is no operator of torch's."""
        graph, self._capturing = self._capturing, None
        try:
            kernel(*args, **kwargs)
            if graph is not None:
                graph.note(kernel, args, kwargs, None)
        finally:
            self._capturing = graph

    def addresses(self) -> set[int]:
        """Return the addresses of all memory outside of the graphs that any of them reads or writes."""
        return {address for graph in self._graphs for address in graph.addresses()}

    @contextmanager
    def _capture(self, graph: Graph, pool: tuple[int, int] | None = None, stream: Any = None) -> Iterator[None]:
        self.captures += 1
        graph.begin(pool or self._new_pool())
        self._graphs.add(graph)
        self._capturing = graph
        try:
            with _Capturing(self):
                yield
        finally:
            self._capturing = None
        graph.end()

    def _new_pool(self) -> tuple[int, int]:
        handle = (0, next(self._ids))
        self.pools[handle] = Pool()
        return handle

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        graph, self._capturing = self._capturing, None
        try:
            if graph is not None and name in _LOOKS:
                raise RuntimeError(LOOKED)
            run = _poisoned(func) if name in _ALLOCATES else func
            out = run(*args, **kwargs)
            if graph is not None:
                graph.note(run, args, kwargs, out)
            return out
        finally:
            self._capturing = graph


class _Capturing(TorchDispatchMode):
    def __init__(self, cuda: SimulatedCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._cuda.operator(func, args, kwargs or {})


class _Stream:
    def wait_stream(self, other: "_Stream") -> None:
        pass


def _poisoned(func: Any) -> Callable[..., torch.Tensor]:
    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = func(*args, **kwargs)
        out.untyped_storage().fill_(_NAN_BYTE)
        return out

    return run


def _is_place(value: Any) -> bool:
    return isinstance(value, Place)


def _upgrade(storage: StorageWeakRef) -> torch.UntypedStorage | None:
    return torch.UntypedStorage._new_with_weak_ptr(storage.cdata)


def _view(place: Place, storage: Any) -> torch.Tensor:
    return torch.empty(0, dtype=place.dtype).set_(storage, place.offset, place.shape, place.strides)
