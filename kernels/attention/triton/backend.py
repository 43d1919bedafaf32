"""Paged attention on a GPU: one launch a layer where sequences bring one row each, which also writes to the cache.

Where a span is longer, sequences may share pages that the step fills, so a launch of its own writes first.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from ...device.occupancy import multiprocessors
from ...device.step_memory import StepMemory
from ...integers import cdiv
from ..layout import AttentionLayer, Limits, Span, columns_of
from ..page_tables import PageTables
from ..plan import (
    HEADER_FIELDS,
    PlanShape,
    SpanArrayBuffers,
    SpanArrays,
    most_fields,
    most_pages,
    most_slots,
    positions_of,
    without,
)
from .items import RunningItems
from .kernels import attention_kernel, write_kernel
from .tiles import TileConfig, compile_options, shape_of, tiles_for

MOST_NARROW_ROWS = 4  # of a span; steps with longer ones run in wide tiles
_WRITE_BLOCK = 1024  # elements
_FORMS = ((False, True), (False, False), (True, False))  # in which a launch is made: in wide tiles, with the write


class TritonAttention:
    """`AttentionBackend` in Triton. No floating-point atomics: the same step gives the same bits.

    A launch depends on the step only through device memory whose addresses stay, and which is allocated in full at the
    start. So a CUDA graph that was captured after `begin(..., capacity=n)` may be replayed after any other `begin` of
    that capacity, which is for steps of one row for each sequence.

    That memory does not grow with the length of a step or of its sequences, but for the lists of their pages: for
    Llama-3.1-8B on a GPU of 132 multiprocessors it is 35 MB of partial sums and, for 256 sequences of up to 131,072
    tokens on pages of 16, 8.5 MB of lists. These lie in `memory`, which others write to as well, and which the
    caller sends; without one `begin` sends them.

    layers: of the model, by the index that `attend` is given. page_size: a power of two. dtype: of the caches and of
    all inputs. limits: of all steps; a step beyond them is a mistake of the caller's. assisted: layers in which another
    backend may attend to some spans. resident: most programs that fit on a multiprocessor at once, if fewer than tiles
    are made for. num_programs: how many run at once in all, whatever fits.
    """

    reads_whole_pages = False

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        limits: Limits,
        *,
        assisted: Collection[int] = (),
        memory: StepMemory | None = None,
        resident: int | None = None,
        num_programs: int | None = None,
    ) -> None:
        if page_size < 1 or page_size & (page_size - 1):
            raise ValueError(f"a page of {page_size} tokens: it must be a power of two")
        self.reads_whole_pages = False
        self._layers = tuple(layers)
        self._page_size = page_size
        self._dtype = dtype
        self._resident = resident
        self._num_programs = num_programs
        self._multiprocessors = multiprocessors(device)
        # Of each layer, and then of each plan: for steps in narrow tiles, and for those in wide ones.
        self._tiles = [[tiles_for(layer, dtype, wide=wide) for wide in (False, True)] for layer in self._layers]
        kinds = [
            (tuple(self._shape(layer, tiles) for tiles in both), index in assisted)
            for index, (layer, both) in enumerate(zip(self._layers, self._tiles, strict=True))
        ]
        plans = list(dict.fromkeys(kinds))
        self._plans = [plans.index(kind) for kind in kinds]
        self._shapes = [shapes for shapes, _ in plans]
        self._assisted = [is_assisted for _, is_assisted in plans]
        self._value_dim = max((layer.value_dim for layer in self._layers), default=0)
        self._memory, self._shared = memory or StepMemory(device), memory is not None
        self._headers = len(self._shapes) * HEADER_FIELDS
        self._few_rows = limits.spans  # of which the positions have a place for good, as all that a graph reads has
        front = self._headers + self._few_rows
        self._front = self._memory.reserve(front, most_fields(self._shapes, limits, page_size))
        if not self._shared:
            self._memory.begin()
        self._tables = PageTables(most_pages(limits, page_size))
        self._steps = SpanArrayBuffers(limits.spans)
        self._items = [tuple(RunningItems(shape) for shape in both) for both in self._shapes]
        self._partials = torch.zeros(self._most_partials(), dtype=torch.float32, device=device)
        self._counters = torch.zeros(self._most_counters(), dtype=torch.int32, device=device)
        self._num_rows = 0  # this and those below are the step's, set by `begin`
        self._wide = [False] * len(plans)
        self._writes = False  # whether the launch that attends also writes
        self._positions_at = 0

    @property
    def _records(self) -> torch.Tensor:
        """Return the lists on the device, from the first header on."""
        return self._memory.on_device[self._front :]

    def begin(self, spans: Sequence[Span], *, capacity: int | None = None, elsewhere: Collection[int] = ()) -> None:
        """Set the spans of a step.

        elsewhere: spans, by index, that another backend attends to in the assisted layers.
        """
        _, rows, _, lists = columns_of(spans)
        used = int(rows.sum())
        self._num_rows = used if capacity is None else capacity
        if used > self._num_rows:
            raise ValueError(f"{used} rows are more than the capacity of {capacity}")
        self._tables.update(lists)
        step = self._steps.step(spans, self._num_rows, self._tables, self._page_size)
        if capacity is not None and step.longest > 1:
            raise ValueError(f"a span of {step.longest} rows: with a capacity each has one")
        self._writes = step.longest <= 1 and not elsewhere
        rest = without(step, elsewhere) if elsewhere else step
        steps = [rest if is_assisted else step for is_assisted in self._assisted]
        self._wide = [one.longest > MOST_NARROW_ROWS for one in steps]
        if not self._shared:
            self._memory.begin()
        self._list(step, steps)
        if not self._shared:
            self._memory.send()

    def _list(self, step: SpanArrays, steps: Sequence[SpanArrays]) -> None:
        """Write the lists of a step, in which places count from the first header.

        steps: the spans that each plan has.
        """
        memory, front = self._memory, self._front
        few = self._num_rows <= self._few_rows
        self._positions_at = front + self._headers if few else memory.take(self._num_rows)
        memory.at(self._positions_at, self._num_rows)[:] = positions_of(step, self._page_size)
        pages_at = memory.take(self._tables.end)
        memory.at(pages_at, self._tables.end)[:] = self._tables.flat[: self._tables.end]
        headers = memory.at(front, self._headers)
        for plan, (both, one, wide) in enumerate(zip(self._items, steps, self._wide, strict=True)):
            items = both[wide].update(one, pages_at - front)
            place = memory.take(items.size)
            memory.at(place, items.size)[:] = items.reshape(-1)
            headers[plan * HEADER_FIELDS :][:HEADER_FIELDS] = place - front, len(items)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        sinks: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if not self._writes:
            self.write(key, value, keys, values)
        out = query.new_empty(self._num_rows, query.shape[1], values.shape[3])
        self.attend_to_rest(layer, query, key, value, keys, values, sinks, bias, out)
        return out

    def write(self, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the step's key and value, (1, kv_heads, rows, dim) of any strides, in a layer's cache."""
        _, kv_heads, rows, key_dim = key.shape
        value_dim = value.shape[3]
        assert rows == self._num_rows
        blocks = cdiv(kv_heads * max(key_dim, value_dim), _WRITE_BLOCK)
        positions = self._memory.on_device[self._positions_at :]
        key, value = _adjoining(key), _adjoining(value)
        write_kernel[(rows, blocks)](
            key, value, keys, values, positions, *key.stride()[1:3], *value.stride()[1:3],
            KV_HEADS=kv_heads, KEY_DIM=key_dim, VALUE_DIM=value_dim, BLOCK=_WRITE_BLOCK, enable_fp_fusion=True,
        )  # fmt: skip

    def attend_to_rest(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        sinks: torch.Tensor | None,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Attend to the spans that no other backend attends to, and leave the other rows of `out` as they are.

        Where another backend attends to some, the step's key and value must have been written before.
        """
        assert query.shape[2] == self._num_rows
        spec = self._layers[layer]
        assert (spec.sinks, spec.biased) == (sinks is not None, bias is not None)
        tensors = _adjoining(query), _adjoining(key), _adjoining(value), keys, values
        given_sinks, given_bias = (out if extra is None else extra for extra in (sinks, bias))
        self._attend(layer, *tensors, given_sinks, given_bias, out, self._records)

    def warm_up(self) -> list[Any]:
        """Compile the kernels that steps may launch, which takes seconds for each that triton has not kept on disk.

        Returns the compiled kernels; none in the interpreter.
        """
        kernels, new = [], self._partials.new_zeros
        nothing = new(self._headers, dtype=torch.int32)
        for spec in dict.fromkeys(self._layers):
            query = new(1, spec.heads, 1, spec.key_dim, dtype=self._dtype)
            key = new(1, spec.kv_heads, 1, spec.key_dim, dtype=self._dtype)
            value = new(1, spec.kv_heads, 1, spec.value_dim, dtype=self._dtype)
            keys = new(1, self._page_size, spec.kv_heads, spec.key_dim, dtype=self._dtype)
            values = new(1, self._page_size, spec.kv_heads, spec.value_dim, dtype=self._dtype)
            out = new(1, spec.heads, spec.value_dim, dtype=self._dtype)
            for wide, writes in _FORMS:
                self._wide, self._writes = [wide] * len(self._wide), writes
                tensors = query, key, value, keys, values, out, out, out
                kernels.append(self._attend(self._layers.index(spec), *tensors, nothing))
        return [kernel for kernel in kernels if kernel is not None]

    def _attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        sinks: torch.Tensor,
        bias: torch.Tensor,
        out: torch.Tensor,
        records: torch.Tensor,
    ) -> Any:
        plan = self._plans[layer]
        spec, tiles = self._layers[layer], self._tiles[layer][self._wide[plan]]
        return attention_kernel[(self._programs(tiles),)](
            query,
            key,
            value,
            keys,
            values,
            sinks,
            bias,
            out,
            records,
            self._partials,
            self._counters,
            *query.stride()[1:3],
            *key.stride()[1:3],
            *value.stride()[1:3],
            bias.stride(0),
            plan,
            spec.scale,
            **compile_options(spec, tiles, self._page_size, writes=self._writes),
        )

    def _shape(self, layer: AttentionLayer, tiles: TileConfig) -> PlanShape:
        return shape_of(layer, tiles, self._programs(tiles))

    def _programs(self, tiles: TileConfig) -> int:
        fitting = tiles.programs if self._resident is None else min(tiles.programs, self._resident)
        return self._num_programs or self._multiprocessors * fitting

    def _most_partials(self) -> int:
        sizes = (most_slots(s) * s.kv_heads * s.block_m * (self._value_dim + 2) for both in self._shapes for s in both)
        return max([1, *sizes])

    def _most_counters(self) -> int:
        return max([1, *(most_slots(shape) * shape.kv_heads for both in self._shapes for shape in both)])


def _adjoining(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with adjoining columns: itself, or a copy."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()
