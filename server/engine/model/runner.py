"""Runs a batch of spans through the model: fills the step's metadata, returns the logits of the rows that need them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import PreTrainedModel

from peftserve.kernels.attention import AttentionBackend
from peftserve.kernels.attention import Span as Rows
from peftserve.kernels.layout import Segment

from ..adapters.attachments import Attachments
from ..scheduling.batch import Batch, Span
from ..staging import is_host
from .attention import PagedAttention, SideRows
from .graphs import DecodeGraphs, Recorder
from .hooks import BypassHooks
from .inputs import Feed, StepInputs, step_inputs
from .kv_cache import KVCache
from .loading import kept_rows

if TYPE_CHECKING:
    from .compiled import CompiledForward

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepLogits:
    """logits: (rows, vocabulary), the rows of all spans in order; offsets[i] is the first row of span i."""

    logits: torch.Tensor
    offsets: list[int]


class _Work(NamedTuple):
    """What the kernels are told. tokens, logits: segments over all rows of the step, and over those of the head."""

    rows: list[Rows]
    tokens: list[Segment]
    logits: list[Segment]


class ModelRunner:
    def __init__(
        self,
        model: PreTrainedModel,
        attention: PagedAttention,
        backend: AttentionBackend,
        cache: KVCache,
        hooks: BypassHooks,
        attachments: Attachments,
        vocab_size: int | None = None,
    ) -> None:
        """backend: of the attention. vocab_size: width of the base's logits."""
        attention.connect(cache, backend)
        self._cache = cache
        self._model = model
        self._attention = attention
        self._backend = backend
        self._hooks = hooks
        self._attachments = attachments
        self._vocab_size = vocab_size
        self._bypassed = False  # whether the step has adapters
        self._graphs: DecodeGraphs | None = None
        self._compiled: CompiledForward | None = None

    @torch.inference_mode()
    def capture_graphs(self, recorder: Recorder, most_rows: int) -> None:
        """Run decode steps of up to `most_rows` rows as graphs. Raises RuntimeError if the model allows none."""
        graphs = DecodeGraphs(self._forward, recorder, most_rows=most_rows, device=self._model.device)
        graphs.capture(self._prepare)
        self._graphs = graphs

    def compile(self) -> None:
        """Run steps compiled. Raises what `CompiledForward` raises if the model cannot be."""
        from .compiled import CompiledForward  # not before: to import the compiler takes seconds

        self._bypassed = False
        self._compiled = CompiledForward(self._model, self._forward, self._model.device)

    def run_uncompiled(self) -> None:
        """From now on, for graphs that are captured as well."""
        self._compiled = None

    def run_eagerly(self) -> None:
        """From now on, without graphs and without what is compiled."""
        self._graphs = self._compiled = None

    def check_device(self) -> None:
        """Raises RuntimeError if the device has failed for good, as a GPU has once a kernel read where it may not."""
        if not is_host(self._model.device):
            torch.cuda.synchronize(self._model.device)

    @torch.inference_mode()
    def run(self, batch: Batch, feed: Feed | None = None) -> StepLogits:
        """feed: the tokens of the step before, where the batch has some that are not known yet."""
        spans = batch.spans
        offsets = list(accumulate((span.num_tokens for span in spans), initial=0))
        row_offsets = list(accumulate((span.num_logit_rows for span in spans), initial=0))
        inputs = step_inputs(spans, offsets, feed, self._model.device)
        if self._backend.reads_whole_pages:
            self._cache.clear(self._tensor(self._begun_pages(spans)))
        self._fill_prefixes(spans)
        work = _Work(
            [
                Rows(offset, span.num_tokens, span.end, span.sequence.pages)
                for span, offset in zip(spans, offsets, strict=False)
            ],
            _segments(spans, offsets),
            _segments(spans, row_offsets),
        )
        logits = self._run(inputs, work)
        return StepLogits(self._without_foreign(logits, spans, row_offsets), row_offsets)

    def _run(self, inputs: StepInputs, work: "_Work") -> torch.Tensor:
        """By a graph where one has room for the step."""
        bypassed = bool(work.tokens)
        size = None if self._graphs is None else self._graph_rows(self._graphs, inputs, work)
        if self._graphs is not None and size is not None and self._begin(work, bypassed, size):
            return self._graphs.run(size, bypassed, inputs)
        self._begin(work, bypassed)
        return self._forward(inputs)

    def _graph_rows(self, graphs: DecodeGraphs, inputs: StepInputs, work: "_Work") -> int | None:
        """Rows of the graph that can run such a step; None if there is none."""
        decodes = inputs.logit_rows is None and len(work.rows) == len(inputs.ids)
        fits = decodes and self._attachments.run_in_the_backend(work.tokens)
        return graphs.rows_for(len(inputs.ids)) if fits else None

    def _prepare(self, rows: int, bypassed: bool) -> None:
        self._begin(_Work([], [], []), bypassed, rows)

    def _begin(self, work: "_Work", bypassed: bool, capacity: int | None = None) -> bool:
        """Tell the kernels of the step. capacity: rows of the graph that is to run it, if any; False if it cannot."""
        self._bypassed = bypassed
        self._backend.begin(work.rows, capacity=capacity)
        self._attention.side = [
            SideRows(segment.start, segment.end, segment.weight, layers)
            for segment, layers in self._attachments.side_attention(work.tokens)
        ]
        return not bypassed or self._attachments.begin(work.tokens, work.logits, capacity=capacity)

    def _forward(self, inputs: StepInputs) -> torch.Tensor:
        """(rows, vocabulary), of the step that has begun."""
        self._hooks.begin(self._bypassed)
        try:
            if self._compiled is not None and self._hooks.in_calls:
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

    def _without_foreign(self, logits: torch.Tensor, spans: list[Span], offsets: list[int]) -> torch.Tensor:
        """Where an adapter brings tokens of its own, nobody else can say them."""
        base = self._vocab_size
        if base is None or logits.shape[-1] == base:
            return logits
        for span, begin, end in zip(spans, offsets, offsets[1:], strict=False):
            slots = () if span.sequence.lease is None else span.sequence.lease.slots
            logits[begin:end, self._attachments.vocabulary(slots, base) :] = float("-inf")
        return logits

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._model.device, non_blocking=True)

    def _fill_prefixes(self, spans: list[Span]) -> None:
        """Copy the keys and values that adapters bring to the pages of sequences that begin with them."""
        for span in spans:
            if span.fill is not None and span.sequence.lease is not None:
                rows = self._tensor(list(self._cache_rows(span, span.fill, span.start)))
                for slot in span.sequence.lease.slots:
                    for layer, (keys, values) in self._attachments.prefix(slot).items():
                        self._cache.write(layer, rows, keys[span.fill : span.start], values[span.fill : span.start])

    def _begun_pages(self, spans: list[Span]) -> list[int]:
        """Pages that the step begins and does not fill. Decodes read their rest as well, masked."""
        size = self._cache.page_size
        ends = ((span, (span.end - 1) // size) for span in spans if span.end % size)
        return [
            span.sequence.pages[i] for span, i in ends if i * size >= (span.start if span.fill is None else span.fill)
        ]

    def _cache_rows(self, span: Span, start: int, end: int) -> Iterable[int]:
        """Flat positions of tokens [start, end) of the span's sequence."""
        pages, size = span.sequence.pages, self._cache.page_size
        return (pages[i // size] * size + i % size for i in range(start, end))


def _segments(spans: list[Span], offsets: list[int]) -> list[Segment]:
    """One segment for each run of neighbouring spans with the same slots; several where a run is a mixture.

    offsets: where each span's rows begin, which are its last tokens.
    """
    segments: list[Segment] = []
    runs: list[tuple[tuple[int, ...], tuple[float, ...], int, int]] = []
    for span, first, end in zip(spans, offsets, offsets[1:], strict=False):
        lease = span.sequence.lease
        begin = max(first, end - max(span.end - span.sequence.active_from, 0))
        if lease is None or not lease.slots or begin == end:
            continue
        if runs and runs[-1][:2] == (lease.slots, lease.weights) and runs[-1][3] == begin:
            runs[-1] = (*runs[-1][:3], end)
        else:
            runs.append((lease.slots, lease.weights, begin, end))
    for slots, weights, begin, end in runs:
        segments += [Segment(slot, weight, begin, end) for slot, weight in zip(slots, weights, strict=True)]
    return segments
