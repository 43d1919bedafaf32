"""Run a batch of spans through the model: fill the step's metadata, return the logits of the rows that need them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from peftserve.kernels.attention.layout import AttentionBackend
from peftserve.kernels.bypass.layout import Capacity

from ..adapters.attachments import Attachments
from ..sampling import Append
from ..scheduling.batch import Batch, Chunk
from ..staging import is_host
from .attention import PagedAttention, SideRows
from .graphs import DecodeGraphs, Recorder
from .hidden_states import HiddenStates
from .hooks import BypassHooks
from .inputs import Feed, InputMemory, StepInputs, WrittenInputs
from .kv_cache import KVCache
from .loading import kept_rows
from .pooling import readers_of
from .rows import RunningRows, StepRows
from .separate_rows import StepSpans
from .state.mixers import Mixers
from .state.parts import PartsMemory, are_fresh

if TYPE_CHECKING:
    from .compiled import CompiledForward

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepLogits:
    """Logits of a step: (rows, vocabulary), the rows of all spans in order; offsets[i] is the first row of span i."""

    logits: torch.Tensor
    offsets: list[int]


class ModelRunner:
    """The model with its cache, attention and bypasses. A step runs as a graph, compiled, or operator by operator."""

    def __init__(
        self,
        model: PreTrainedModel,
        attention: PagedAttention,
        backend: AttentionBackend,
        cache: KVCache,
        hooks: BypassHooks,
        attachments: Attachments,
        inputs: InputMemory,
        vocab_size: int | None = None,
        hidden: HiddenStates | None = None,
        mixers: Mixers | None = None,
        parts: PartsMemory | None = None,
        spans: StepSpans | None = None,
    ) -> None:
        """Let the model's attention use the cache and a backend from now on.

        backend: of the attention. inputs: in the memory by which backends are told of a step, which may be one for
        all. vocab_size: width of the base's logits; None leaves wider ones as they are. hidden: the model's hidden
        states, for the prompts that are pooled. mixers, parts: of models that keep state beside the cache.
        spans: to tell linears that are run sequence by sequence.
        """
        attention.connect(cache, backend)
        self._cache = cache
        self._model = model
        self._attention = attention
        self._backend = backend
        self._hooks = hooks
        self._attachments = attachments
        self._inputs = inputs
        self._memory = inputs.memory
        self._running = RunningRows()
        self._vocab_size = vocab_size
        self._hidden = hidden or HiddenStates()
        self._mixers = mixers
        self._parts = parts
        self._spans = spans or StepSpans()
        self._bypassed = False  # whether the step has adapters
        self._graphs: DecodeGraphs | None = None
        self._compiled: CompiledForward | None = None

    @torch.inference_mode()
    def capture_graphs(self, recorder: Recorder, most_rows: int) -> None:
        """Record graphs, and run decode steps of up to `most_rows` rows by them from now on.

        Raises RuntimeError if the model cannot be recorded.
        """
        graphs = DecodeGraphs(self._forward, recorder, self._inputs.of_graph, most_rows=most_rows)
        graphs.capture(self._prepare)
        self._graphs = graphs

    def compile(self, most_rows: int) -> None:
        """Run steps of up to `most_rows` rows compiled from now on. Raises what `CompiledForward` raises."""
        from .compiled import CompiledForward  # not before: to import the compiler takes seconds

        self._bypassed = False
        device, room = self._model.device, self._hooks.room_behind
        self._compiled = CompiledForward(self._model, self._forward, device, room, most_rows)

    def run_uncompiled(self) -> None:
        """Run operator by operator from now on; graphs that are captured later do, too."""
        self._compiled = None

    def run_without_graphs(self) -> None:
        """Launch all steps from now on, compiled or not as before."""
        self._graphs = None

    @property
    def num_graphs(self) -> int:
        """Return how many graphs decode steps are run by; 0 if steps are launched."""
        return 0 if self._graphs is None else len(self._graphs)

    def check_device(self) -> None:
        """Raise RuntimeError if the device has failed for good, as a GPU has once a kernel read where it may not."""
        if not is_host(self._model.device):
            torch.cuda.synchronize(self._model.device)

    @torch.inference_mode()
    def run(self, batch: Batch, feed: Feed | None = None, also: Callable[[Append], None] | None = None) -> StepLogits:
        """Run a step, and pool the hidden states of the prompts in it that ask for that.

        feed: the tokens of the step before, where the batch has some that are not known yet. also: appends what else
        is to go to the device with the step, which is there when this returns.
        """
        rows = self._running.rows_of(batch)
        if self._backend.reads_whole_pages:
            self._cache.clear(self._tensor(self._begun_pages(batch.chunks)))
        self._fill_prefixes(batch.prefills)
        self._copy_states((span.restore, span.sequence.seat) for span in batch.prefills)
        with self._hidden.read(readers_of(batch, rows.offsets)):
            logits = self._run(rows, feed, also)
        self._copy_states((span.sequence.seat, span.save and span.save.slot) for span in batch.prefills)
        return StepLogits(self._without_foreign(logits, rows), rows.logit_offsets)

    def _run(self, rows: StepRows, feed: Feed | None, also: Callable[[Append], None] | None) -> torch.Tensor:
        """Run a step by a graph, where one has room for it, else by launches. Returns logits (rows, vocabulary)."""
        graphs, capacity = self._graphs, self._graph_capacity(rows)
        inputs = None if capacity is None else self._write(rows, feed, capacity)
        if inputs is None:
            graphs, inputs = None, self._write(rows, feed)
        assert inputs is not None, "no step is too much without a graph"
        if also is not None:
            also(self._memory.append)
        self._memory.send()
        inputs.feed()
        if graphs is None or capacity is None:
            return self._forward(inputs.inputs)
        return graphs.run(capacity, self._bypassed)[: len(rows)]

    def _graph_capacity(self, rows: StepRows) -> Capacity | None:
        """Return the capacity of the graph that can run such a step; None if there is none."""
        if self._graphs is None or not rows.one_each or not self._attachments.run_in_the_backend(rows.tokens):
            return None
        if self._parts is not None and are_fresh(rows).any():  # a prompt of one token
            return None
        return self._graphs.capacity_for(len(rows), self._attachments.kind_of(rows.tokens))

    def _prepare(self, capacity: Capacity, bypassed: bool) -> None:
        """Set the memory that a graph reads to a step of no sequences, to record it."""
        nothing = RunningRows().rows_of(Batch())
        self._memory.begin()
        self._inputs.write(nothing, None, capacity.rows)
        self._write_parts(nothing, capacity)
        self._begin(nothing, bypassed, capacity)
        self._memory.send()

    def _write(self, rows: StepRows, feed: Feed | None, capacity: Capacity | None = None) -> WrittenInputs | None:
        """Write the step's memory, but for what others add. Returns None if a graph of that capacity has no room."""
        self._memory.begin()
        inputs = self._inputs.write(rows, feed, None if capacity is None else capacity.rows)
        self._write_parts(rows, capacity)
        return inputs if self._begin(rows, bool(rows.tokens), capacity) else None

    def _write_parts(self, rows: StepRows, capacity: Capacity | None) -> None:
        """Tell the modules that keep state which slots the step's rows have."""
        if self._mixers is not None and self._parts is not None:
            self._mixers.parts = self._parts.write(rows, None if capacity is None else capacity.rows)

    def _begin(self, rows: StepRows, bypassed: bool, capacity: Capacity | None = None) -> bool:
        """Tell the kernels of the step. capacity: of the graph that is to run it, if any; False if it cannot."""
        self._bypassed = bypassed
        self._spans.offsets = rows.offsets
        if bypassed and not self._attachments.begin(rows.tokens, rows.logits, capacity=capacity):
            return False
        self._backend.begin(rows.attention, capacity=None if capacity is None else capacity.rows)
        self._attention.side = [
            SideRows(segment.start, segment.end, segment.weight, layers)
            for segment, layers in self._attachments.side_attention(rows.tokens)
        ]
        return True

    def _forward(self, inputs: StepInputs) -> torch.Tensor:
        """Run the model on the step that has begun. Returns logits (rows, vocabulary)."""
        self._hooks.begin(self._bypassed)
        self._attention.begin()
        try:
            if self._compiled is not None and self._hooks.fits_compiled and not self._hidden.is_read:
                return self._compiled(inputs)
            output = self._model(
                input_ids=inputs.ids[None],
                position_ids=inputs.positions[None],
                use_cache=False,
                logits_to_keep=0 if inputs.logit_rows is None else inputs.logit_rows,
            )
        finally:
            self._attention.side = ()
            self._hooks.end()
        logits: torch.Tensor = output.logits[0]
        return logits if inputs.logit_rows is None else kept_rows(logits, inputs.logit_rows)

    def _without_foreign(self, logits: torch.Tensor, rows: StepRows) -> torch.Tensor:
        """Set to -inf the logits of tokens that a row's adapters do not have, be they the base's or another's."""
        base = self._vocab_size
        if base is None or (logits.shape[-1] == base and self._attachments.predict_alike):
            return logits
        offsets = rows.logit_offsets
        for lease, begin, end in zip(rows.leases, offsets, offsets[1:], strict=False):
            known = self._attachments.predicted(() if lease is None else lease.slots, base)
            if known < logits.shape[-1]:
                logits[begin:end, known:] = float("-inf")
        return logits

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._model.device, non_blocking=True)

    def _fill_prefixes(self, spans: Sequence[Chunk]) -> None:
        """Copy the keys, values and states that adapters bring to the pages and slots of sequences that begin so."""
        for span in spans:
            if span.fill is not None and span.sequence.lease is not None:
                rows = self._tensor(list(self._cache_rows(span, span.fill, span.start)))
                for slot in span.sequence.lease.slots:
                    for layer, (keys, values) in self._attachments.prefix(slot).items():
                        self._cache.write(layer, rows, keys[span.fill : span.start], values[span.fill : span.start])
                    if self._mixers is not None:
                        self._mixers.pool.fill(span.sequence.seat, self._attachments.states(slot))

    def _copy_states(self, pairs: Iterable[tuple[int | None, int | None]]) -> None:
        """Copy what the model keeps of sequences from slots to others, but for those that are None."""
        if self._mixers is None:
            return
        for source, target in pairs:
            if source is not None and target is not None:
                self._mixers.pool.copy(source, target)

    def _begun_pages(self, spans: list[Chunk]) -> list[int]:
        """Return the pages that the step begins and does not fill: decodes read the rest of them as well, masked."""
        size = self._cache.page_size
        ends = ((span, (span.end - 1) // size) for span in spans if span.end % size)
        return [
            span.sequence.pages[i] for span, i in ends if i * size >= (span.start if span.fill is None else span.fill)
        ]

    def _cache_rows(self, span: Chunk, start: int, end: int) -> Iterable[int]:
        """Yield the flat positions in the cache of tokens [start, end) of the span's sequence."""
        pages, size = span.sequence.pages, self._cache.page_size
        return (pages[i // size] * size + i % size for i in range(start, end))
