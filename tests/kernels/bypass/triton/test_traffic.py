"""The bytes that kernels move, counted at each load and store in the interpreter."""

from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from benchmarks.kernels.roofline import AdapterShare, least_work
from peftserve.kernels.attention.layout import AttentionLayer, Limits
from peftserve.kernels.attention.triton.backend import TritonAttention
from peftserve.kernels.bypass.layout import Group, Segment
from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.kernels.bypass.triton.designs import Design, rows_apart, rows_in_tiles


class Recorder:
    """Counts bytes loaded from and stored to each tensor: those of distinct addresses, and all that were asked for."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.distinct: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self._tensors = tensors
        self._seen: dict[str, Any] = {}

    def take(self, kind: str, addresses: Any, mask: Any) -> None:
        wanted = addresses.data[np.broadcast_to(mask.data, addresses.data.shape)].astype(np.int64)
        for name, tensor in self._tensors.items():
            start, size = tensor.data_ptr(), tensor.element_size()
            inside = wanted[(wanted >= start) & (wanted < start + tensor.nbytes)]
            places = np.unique((inside - start) // size)
            seen = self._seen.setdefault(f"{name} {kind}", np.zeros(tensor.numel(), dtype=bool))
            self.asked[f"{name} {kind}"] += inside.size * size
            self.distinct[f"{name} {kind}"] += int((~seen[places]).sum()) * size
            seen[places] = True


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch, kit: ModuleType) -> list[Recorder]:
    """Let the recorders in the list see all loads and stores."""
    if kit.DEVICE != "cpu":
        pytest.skip("counts in the interpreter")
    made: list[Recorder] = []
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counting_load(self: Any, ptrs: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        for recorder in made:
            recorder.take("read", ptrs, mask)
        return load(self, ptrs, mask, *args, **kwargs)

    def counting_store(self: Any, ptrs: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        for recorder in made:
            recorder.take("written", ptrs, mask)
        return store(self, ptrs, value, mask, *args, **kwargs)

    monkeypatch.setattr(builder, "create_masked_load", counting_load)
    monkeypatch.setattr(builder, "create_masked_store", counting_store)
    return made


GROUP = Group(2048, (1024, 512))
RANKS = (8, 16, 32, 64)
SINGLE, TILES = rows_apart(), rows_in_tiles()


class Always:
    def __init__(self, design: Design) -> None:
        self._design = design

    def design(self, *_: Any) -> Design:
        return self._design


def run(
    kit: ModuleType, recorders: list[Recorder], segments: list[Segment], rows: int, design: Design = SINGLE
) -> Recorder:
    case = kit.Case((GROUP,), torch.float16)
    for slot, rank in enumerate(RANKS):
        case.add(slot, {0: (rank, rank)})
    backend = TritonBypass(case.arena, (GROUP,), max_slots=len(RANKS), max_rows=64, choice=Always(design))
    case.attach_all(backend)
    x, y = case.input(0, rows), [case.output(0, position, rows) for position in range(2)]
    backend.begin(segments, [])
    tensors = {"x": x, "y0": y[0], "y1": y[1], "factors": case.arena}
    fixed = backend._fixed
    memory = {
        "h": fixed.h,
        "lists": fixed.step_memory.on_device,
        "records": fixed.records,
        "table": backend._slots.table,
    }
    recorders.append(Recorder(tensors | memory))
    backend.lead_in()
    backend.add_(0, x, y)
    return recorders[0]


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "design"), [(1, SINGLE), (4, TILES)], ids=["a token each", "four tokens each"])
def test_memory_traffic_is_the_floors(kit: ModuleType, recorders: list[Recorder], tokens: int, design: Design) -> None:
    segments = [Segment(slot, 1.0, slot * tokens, (slot + 1) * tokens) for slot in range(len(RANKS))]
    found = run(kit, recorders, segments, tokens * len(RANKS) + 5, design)
    floor = least_work([GROUP], [AdapterShare(rank, tokens) for rank in RANKS], torch.float16)
    assert found.distinct["factors read"] == floor.factors
    activations = sum(found.distinct[name] for name in ("x read", "y0 read", "y1 read", "y0 written", "y1 written"))
    assert activations == floor.activations
    assert floor.num_bytes <= found.distinct.total() <= 1.05 * floor.num_bytes
    # Nothing of an adapter is read twice, nor padded to the rank of another.
    assert found.asked["factors read"] == floor.factors
    assert found.asked["y0 read"] == found.distinct["y0 read"]


def test_nothing_is_moved_for_rows_without_an_adapter(kit: ModuleType, recorders: list[Recorder]) -> None:
    found = run(kit, recorders, [Segment(0, 1.0, 3, 3)], 9)
    assert found.distinct.total() == 0


def test_an_adapter_that_many_rows_share_is_read_once_for_each_tile(kit: ModuleType, recorders: list[Recorder]) -> None:
    found = run(kit, recorders, [Segment(0, 1.0, 0, 40)], 40, TILES)
    floor = least_work([GROUP], [AdapterShare(RANKS[0], 40)], torch.float16)
    assert found.distinct["factors read"] == floor.factors
    assert found.asked["factors read"] == 3 * floor.factors


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("sequences", "tiles"),
    [([(1, 200), (1, 77), (1, 0)], [(200, 200), (77, 77), (0, 0)]), ([(32, 30)], [(30, 45), (46, 61)])],
    ids=["decode", "prefill"],
)
def test_attention_reads_each_key_and_value_once_for_each_tile(
    kit: ModuleType,
    recorders: list[Recorder],
    sequences: list[tuple[int, int]],
    tiles: list[tuple[int, int]],
    window: int | None,
) -> None:
    """tiles: the positions of each one's first and last token. Nothing before the window is read."""
    layer = AttentionLayer(8, 2, 16, 32, 0.25, window)
    case = kit.AttentionCase(layer, dtype=torch.float16)
    spans = case.spans(sequences)
    query, key, value = case.inputs(sum(span.rows for span in spans))
    limits = Limits(rows=32, spans=3, positions=201)
    backend = TritonAttention([layer], case.page_size, case.dtype, torch.device("cpu"), limits, num_programs=8)
    backend.begin(spans)
    key, value = key.contiguous(), value.contiguous()
    memory = {"key": key, "value": value, "keys": case.keys, "values": case.values, "partials": backend._partials}
    recorders.append(Recorder(memory))
    backend.attend(0, query, key, value, case.keys, case.values)
    found, seen = recorders[0], sum(last + 1 - max(first - (window or 999) + 1, 0) for first, last in tiles)
    seen -= len(spans) if sequences[0][0] == 1 else 0  # a decode's own is not read from the cache
    for name, dim in (("key", layer.key_dim), ("value", layer.value_dim)):
        new = len(query[0, 0]) * layer.kv_heads * dim * 2
        assert found.asked[f"{name}s read"] == seen * layer.kv_heads * dim * 2
        assert found.asked[f"{name} read"] == found.asked[f"{name}s written"] == new
    assert found.asked["partials read"] == found.asked["partials written"]
