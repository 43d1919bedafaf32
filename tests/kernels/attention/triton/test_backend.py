from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionLayer, Limits, Span
from peftserve.kernels.attention.plan import most_fields, most_slots
from peftserve.kernels.attention.triton import backend as triton_attention
from peftserve.kernels.attention.triton.backend import TritonAttention
from peftserve.kernels.attention.triton.tiles import shape_of, tiles_for

TOLERANCE = 3e-6  # in float32: a GPU's exp2 is within 2e-7
LAYER = AttentionLayer(heads=4, kv_heads=2, key_dim=16, value_dim=16, scale=0.3)
LIMITS = Limits(rows=100, spans=12, positions=1000)
MIXED = [(1, 0), (1, 15), (1, 90), (20, 0), (9, 33)]
"""(rows, context) of each sequence: decodes about the ends of pages, and prefills."""


@pytest.fixture(autouse=True)
def poison(kit: ModuleType) -> Iterator[None]:
    """Let torch fill what it allocates with NaN on a CPU, so that a kernel that reads unwritten memory shows."""
    torch.use_deterministic_algorithms(kit.DEVICE == "cpu")
    yield
    torch.use_deterministic_algorithms(False)


def make(kit: ModuleType, layer: AttentionLayer = LAYER, **options: Any) -> tuple[Any, TritonAttention]:
    """Make a backend. num_programs: that keys are split for."""
    case = kit.AttentionCase(layer, **{k: options.pop(k) for k in ("page_size", "dtype") if k in options})
    options.setdefault("num_programs", 16)
    backend = TritonAttention([layer], case.page_size, case.dtype, torch.device(kit.DEVICE), LIMITS, **options)
    backend._partials.fill_(float("nan"))
    return case, backend


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [
        AttentionLayer(2, 2, 64, 64, 0.125),
        AttentionLayer(7, 1, 80, 96, 0.1),
        AttentionLayer(4, 2, 96, 80, 0.1, window=17),
        AttentionLayer(8, 2, 16, 128, 0.2, softcap=4.0),
        AttentionLayer(4, 2, 128, 16, 0.1, sinks=True),
        AttentionLayer(4, 2, 32, 32, 0.2, window=15, restarts=True),
        AttentionLayer(6, 3, 32, 16, 0.2, biased=True),
        AttentionLayer(20, 1, 16, 16, 0.2, window=40, softcap=3.0, sinks=True, biased=True),
        AttentionLayer(40, 2, 16, 8, 0.3, window=40, softcap=2.0, sinks=True),
    ],
    ids=[
        "64",
        "80, one kv head",
        "96, window",
        "softcap",
        "128, sinks",
        "restarts",
        "biased",
        "biased and all",
        "all, groups wider than a tile",
    ],
)
@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_any_layer(kit: ModuleType, layer: AttentionLayer, kind: str) -> None:
    case, backend = make(kit, layer)
    spans = case.spans([s for s in MIXED if kind == "mixed" or s[0] == 1])
    kit.check_attention(case, backend, spans, None, TOLERANCE)
    assert not backend._counters.any()


@pytest.mark.parametrize("page_size", [1, 4, 64])
def test_pages_of_any_power_of_two(kit: ModuleType, page_size: int) -> None:
    case, backend = make(kit, page_size=page_size)
    kit.check_attention(case, backend, case.spans([(1, 3), (1, 16), (5, 9), (1, 70)]), None, TOLERANCE)
    with pytest.raises(ValueError, match="power of two"):
        make(kit, page_size=12)


@pytest.mark.parametrize("options", [{}, {"num_programs": 1}], ids=str)
def test_half_precision(kit: ModuleType, options: dict[str, Any]) -> None:
    layer = replace(LAYER, window=60, softcap=3.0, sinks=True)
    case, backend = make(kit, layer, dtype=torch.float16, **options)
    kit.check_attention(case, backend, case.spans(MIXED), None, 2e-3)


def test_a_prefill_in_chunks_beside_decodes(kit: ModuleType) -> None:
    """Each step reads what the ones before have written."""
    case, backend = make(kit, replace(LAYER, window=30))
    first, second = case.spans([(50, 0), (4, 60)])
    for step, (context, rows) in enumerate(((0, 1), (1, 3), (4, 16), (20, 30))):
        decode = Span(0, 1, 61 + step, second.pages)
        spans = [decode, Span(1, rows, context + rows, first.pages)]
        kit.check_attention(case, backend, spans, None, TOLERANCE)


def test_keys_are_split_where_sequences_are_few(kit: ModuleType) -> None:
    case, backend = make(kit, num_programs=12)
    kit.check_attention(case, backend, case.spans([(1, 700)]), None, TOLERANCE)
    header = backend._records[:2].tolist()
    items = backend._records[header[0] : header[0] + 10 * header[1]].view(-1, 10)
    assert header[1] == 6  # two kv heads each
    assert items[:, 7].eq(6).all()


def test_rows_beyond_the_step_give_zeros_and_write_nothing(kit: ModuleType) -> None:
    case, backend = make(kit)
    for sequences in ([(1, 40), (1, 3)], []):
        kit.check_attention(case, backend, case.spans(sequences), 9, TOLERANCE)
    with pytest.raises(ValueError, match="more than the capacity"):
        backend.begin(case.spans([(3, 0)]), capacity=2)
    with pytest.raises(ValueError, match="a span of 3 rows"):
        backend.begin(case.spans([(3, 0)]), capacity=9)


def test_too_few_pages_are_refused(kit: ModuleType) -> None:
    _, backend = make(kit)
    with pytest.raises(ValueError, match="pages"):
        backend.begin([Span(0, 1, 17, [3])])


@pytest.mark.parametrize(("reach", "first"), [({"window": 20}, 81), ({"window": 48, "restarts": True}, 96)])
@pytest.mark.parametrize("rows", [1, 2])
def test_pages_before_the_window_are_not_read(kit: ModuleType, reach: dict[str, Any], first: int, rows: int) -> None:
    case, backend = make(kit, replace(LAYER, **reach))
    (span,) = case.spans([(rows, 100)])
    gone = first // case.page_size  # pages that no row reaches
    kit.check_attention(case, backend, [span._replace(pages=[-(10**6)] * gone + [*span.pages[gone:]])], None, TOLERANCE)


class Launches:
    """Replaces a kernel, and records how each launch was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, ...]] = []
        for name in ("attention_kernel", "write_kernel"):
            monkeypatch.setattr(triton_attention, name, self)

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            where = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args)
            self.asked.append((grid, where, options))

        return launch


def test_a_launch_depends_on_the_step_through_device_memory_alone(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that was captured once therefore serves every step of the same capacity."""
    case, backend = make(kit)
    launches = Launches(monkeypatch)
    query, key, value = case.inputs(8)
    out = torch.empty(8, 4, 16, device=kit.DEVICE)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args: out)
    asked = []
    for sequences in ([(1, 0)], [(1, 20)] * 8, [], [(1, 300), (1, 9)]):
        backend.begin(case.spans(sequences), capacity=8)
        backend.attend(0, query, key, value, case.keys, case.values)
        asked.append(list(launches.asked))
        launches.asked.clear()
    assert all(one == asked[0] for one in asked)


@pytest.mark.parametrize("capacity", [None, 100])
def test_all_memory_is_there_from_the_start(kit: ModuleType, capacity: int | None) -> None:
    """Any step within the limits leaves it where it is; one beyond them is the caller's mistake."""
    case, backend = make(kit, num_programs=64)
    mixed = MIXED if capacity is None else MIXED[:3]
    buffers = [backend._records, backend._partials, backend._counters]
    places = [buffer.data_ptr() for buffer in buffers]
    everything = list(range(63))
    steps = [[Span(row, 1, 1000, everything) for row in range(12)], case.spans(mixed)]
    if capacity is None:
        steps += [[Span(0, 100, 1000, everything)], [Span(8 * row, 8, 900 + row, everything) for row in range(12)]]
    for spans in steps:
        backend.begin(spans, capacity=capacity)
        assert places == [buffer.data_ptr() for buffer in (backend._records, backend._partials, backend._counters)]
    kit.check_attention(case, backend, case.spans(mixed), capacity, TOLERANCE)
    with pytest.raises(AssertionError, match="beyond the limits"):
        backend.begin([Span(row, 1, 1000, everything) for row in range(100)])


def test_what_the_largest_steps_of_a_large_model_need_is_little(kit: ModuleType) -> None:
    """Llama-3.1-8B on a GPU of 132 multiprocessors, as the class says."""
    layer = AttentionLayer(32, 8, 128, 128, 128**-0.5)
    tiles = [tiles_for(layer, torch.bfloat16, wide=wide) for wide in (False, True)]
    shapes = [shape_of(layer, t, 132 * t.programs) for t in tiles]
    assert max(most_slots(s) * s.kv_heads * s.block_m * 130 * 4 for s in shapes) == pytest.approx(35e6, rel=0.01)
    for rows in (2048, 16384):
        limits = Limits(rows, 256, 131072)
        assert most_fields([shapes], limits, 16) * 4 < 8.8e6


@pytest.mark.parametrize("others", [[(1, 50)], [(1, 50), (30, 5)]], ids=["decodes", "mixed"])
def test_the_same_step_gives_the_same_bits(kit: ModuleType, others: list[tuple[int, int]]) -> None:
    case, backend = make(kit, dtype=torch.float16)
    (span, *beside) = case.spans([(1, 200), *others])
    rows = 1 + sum(rows for rows, _ in others)
    query, key, value = case.inputs(rows)
    found = []
    for _ in range(2):
        backend.begin([span, *beside])
        found.append(backend.attend(0, query, key, value, case.keys, case.values)[0])
    assert torch.equal(*found)


def test_layers_share_plans_where_they_are_alike(kit: ModuleType) -> None:
    """Two windows, two group sizes: each layer returns what it returns alone."""
    layers = [LAYER, replace(LAYER, window=8), replace(LAYER, heads=2), replace(LAYER, softcap=1.0)]
    backend = TritonAttention(layers, 16, torch.float32, torch.device(kit.DEVICE), LIMITS, num_programs=8)
    assert len(backend._shapes) == 3
    for index, layer in enumerate(layers):
        case = kit.AttentionCase(layer)
        spans = case.spans([(1, 40), (6, 10)])
        query, key, value = case.inputs(7)
        found = []
        for which, one in ((index, backend), (0, make(kit, layer, num_programs=8)[1])):
            one.begin(spans)
            found.append(one.attend(which, query, key, value, case.keys, case.values))
        assert torch.equal(*found)


def test_warming_up_compiles_what_steps_launch(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _, backend = make(kit, replace(LAYER, sinks=True))
    backend.warm_up()
    launches = Launches(monkeypatch)
    backend.warm_up()
    forms = [(options["BLOCK_M"], options["WRITES"]) for _, _, options in launches.asked]
    assert forms == [(16, True), (16, False), (64, False)]


def test_decodes_are_one_launch_and_longer_spans_are_written_first(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then may sequences share pages that the step fills."""
    case, backend = make(kit)
    launches = Launches(monkeypatch)
    for sequences, kernels in (([(1, 20)] * 3, ["attention"]), ([(1, 20), (2, 9)], ["write", "attention"])):
        spans = case.spans(sequences)
        query, key, value = case.inputs(sum(span.rows for span in spans))
        backend.begin(spans)
        backend.attend(0, query, key, value, case.keys, case.values)
        assert ["attention" if "WRITES" in options else "write" for _, _, options in launches.asked] == kernels
        launches.asked.clear()


@pytest.mark.parametrize("sharer", [2, 5])
def test_a_page_that_a_longer_span_fills_is_read_by_others_in_the_same_step(kit: ModuleType, sharer: int) -> None:
    """sharer: rows of the span that reads it."""
    case, backend = make(kit)
    first, second = case.spans([(9, 7), (sharer, 16)])
    second = second._replace(row=9, pages=[first.pages[0], *second.pages[1:]])
    kit.check_attention(case, backend, [second._replace(row=0), first._replace(row=sharer)], None, TOLERANCE)
