"""Runs a batch of spans through the model: fills the step's metadata, returns the logits of the rows that need them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from peftserve.kernels.layout import Segment

from ..adapters.attachments import Attachments
from ..scheduling.batch import Batch, Span
from .attention import AttentionStep, DecodeRows, PagedAttention, PrefillRows, SideRows
from .hooks import BypassHooks
from .kv_cache import KVCache

MASKED_ROWS = 256  # rows of a masked product at a time: bounds the mask, and skips keys that no row of a block sees


@dataclass(frozen=True)
class StepLogits:
    """logits: (rows, vocabulary), the rows of all spans in order; offsets[i] is the first row of span i."""

    logits: torch.Tensor
    offsets: list[int]


class ModelRunner:
    def __init__(
        self,
        model: PreTrainedModel,
        attention: PagedAttention,
        cache: KVCache,
        hooks: BypassHooks,
        attachments: Attachments,
        vocab_size: int | None = None,
    ) -> None:
        """vocab_size: width of the base's logits."""
        attention.cache = cache
        self._cache = cache
        self._model = model
        self._attention = attention
        self._page_size = cache.page_size
        self._hooks = hooks
        self._attachments = attachments
        self._vocab_size = vocab_size

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepLogits:
        offsets = list(accumulate((span.num_tokens for span in batch.spans), initial=0))
        row_offsets = list(accumulate((span.num_logit_rows for span in batch.spans), initial=0))
        ids = [token for span in batch.spans for token in span.sequence.tokens[span.start : span.end]]
        positions = [position for span in batch.spans for position in range(span.start, span.end)]
        rows = [row for span, end in zip(batch.spans, offsets[1:], strict=True) for row in _logit_rows(span, end)]
        self._cache.clear(self._tensor(self._begun_pages(batch.spans)))
        self._fill_prefixes(batch.spans)
        tokens = _segments(batch.spans, offsets)
        self._attention.step = self._attention_step(batch.spans, offsets, tokens)
        self._begin_bypass(tokens, _segments(batch.spans, row_offsets))
        try:
            output = self._model(
                input_ids=self._tensor(ids)[None],
                position_ids=self._tensor(positions)[None],
                use_cache=False,
                logits_to_keep=self._tensor(rows),
            )
        finally:
            self._attention.step = None
            self._hooks.end()
        return StepLogits(self._without_foreign(output.logits[0], batch.spans, row_offsets), row_offsets)

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

    # Bypasses

    def _begin_bypass(self, tokens: list[Segment], logits: list[Segment]) -> None:
        if tokens:
            self._attachments.begin(tokens, logits)
        self._hooks.begin(bool(tokens))

    def _fill_prefixes(self, spans: list[Span]) -> None:
        """Copy the keys and values that adapters bring to the pages of sequences that begin with them."""
        for span in spans:
            if span.fill is not None and span.sequence.lease is not None:
                rows = self._tensor(list(self._cache_rows(span, span.fill, span.start)))
                for slot in span.sequence.lease.slots:
                    for layer, (keys, values) in self._attachments.prefix(slot).items():
                        self._cache.write(layer, rows, keys[span.fill : span.start], values[span.fill : span.start])

    # Attention

    def _attention_step(self, spans: list[Span], offsets: list[int], segments: list[Segment]) -> AttentionStep:
        write = [row for span in spans for row in self._cache_rows(span, span.start, span.end)]
        singles = [i for i, span in enumerate(spans) if span.num_tokens == 1]
        prefills = [
            rows
            for span, offset in zip(spans, offsets, strict=False)
            if span.num_tokens > 1
            for rows in self._prefill_rows(span, offset)
        ]
        whole = not prefills
        decodes = [self._decode_rows(spans, offsets, group, whole) for group in self._by_length(spans, singles)]
        side = [
            SideRows(segment.start, segment.end, segment.weight, layers)
            for segment, layers in self._attachments.side_attention(segments)
        ]
        return AttentionStep(self._tensor(write), decodes, prefills, side)

    def _prefill_rows(self, span: Span, offset: int) -> list[PrefillRows]:
        """The whole span at once, or in blocks where it needs a mask over all that comes before it."""
        pages = self._pages([span])
        block = MASKED_ROWS if span.start else span.num_tokens
        begins = range(0, span.num_tokens, block)
        return [
            PrefillRows(offset + begin, offset + min(begin + block, span.num_tokens), span.start + begin, pages)
            for begin in begins
        ]

    def _begun_pages(self, spans: list[Span]) -> list[int]:
        """Pages that the step begins and does not fill. Decodes read their rest as well, masked."""
        size = self._page_size
        ends = ((span, (span.end - 1) // size) for span in spans if span.end % size)
        return [
            span.sequence.pages[i] for span, i in ends if i * size >= (span.start if span.fill is None else span.fill)
        ]

    def _cache_rows(self, span: Span, start: int, end: int) -> Iterable[int]:
        """Flat positions of tokens [start, end) of the span's sequence."""
        pages, size = span.sequence.pages, self._page_size
        return (pages[i // size] * size + i % size for i in range(start, end))

    def _by_length(self, spans: list[Span], singles: list[int]) -> list[list[int]]:
        """Decodes of similar length together: padding at most quadruples what a short one reads."""
        groups: dict[int, list[int]] = {}
        for i in singles:
            groups.setdefault((spans[i].end // self._page_size).bit_length() // 2, []).append(i)
        return list(groups.values())

    def _decode_rows(self, spans: list[Span], offsets: list[int], group: list[int], whole: bool) -> DecodeRows:
        rows = None if whole and len(group) == len(spans) else self._tensor([offsets[i] for i in group])
        members = [spans[i] for i in group]
        return DecodeRows(rows, self._pages(members), self._tensor([span.end for span in members]))

    def _pages(self, spans: list[Span]) -> torch.Tensor:
        """(spans, pages): those that hold each span's tokens so far, padded with its own first one."""
        counts = [-(-span.end // self._page_size) for span in spans]
        width = max(counts)
        padded = [
            span.sequence.pages[:count] + span.sequence.pages[:1] * (width - count)
            for span, count in zip(spans, counts, strict=True)
        ]
        return torch.tensor(padded, dtype=torch.int64).to(self._model.device, non_blocking=True)


def _logit_rows(span: Span, end: int) -> range:
    return range(end - span.num_logit_rows, end)


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
