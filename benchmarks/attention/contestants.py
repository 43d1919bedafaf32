"""The contestants of the attention benchmark: our backends, torch's varlen_attn, and SDPA over gathered pages.

Each is a function from a problem to a call that attends at one layer, or to None where it cannot run the step.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

from peftserve.kernels.attention.factory import make_attention_backend
from peftserve.kernels.attention.flash.backend import MixedAttention
from peftserve.kernels.attention.flash.calls import sdpa_flash, torch_flash
from peftserve.kernels.attention.layout import AttentionBackend, Span
from peftserve.kernels.attention.triton.backend import TritonAttention

from .problem import PAGE_SIZE, Attend, AttentionProblem

VARLEN_PAGE_SIZE = 256


def ours(problem: AttentionProblem) -> Attend:
    return _layer(problem, _own(problem))


def written_first(problem: AttentionProblem) -> Attend | None:
    """Return our kernel for decodes, with a separate launch that writes to the cache; None for other steps."""
    if any(span.rows > 1 for span in problem.spans):
        return None
    backend = _own(problem)
    attend = _layer(problem, backend)
    backend._writes = False  # as `begin` leaves it for a step with a longer span
    return attend


def flash(problem: AttentionProblem) -> Attend | None:
    """Return flash kernels for all spans but decodes; None if there are only decodes. Without a GPU, SDPA stands in."""
    if all(span.rows == 1 for span in problem.spans):
        return None
    device = torch.device(problem.device)
    kernel = sdpa_flash if problem.device == "cpu" else torch_flash(problem.dtype, device)
    assert kernel is not None, "there are none for this device"
    most_keys = sum(span.total for span in problem.spans)
    rest = ([problem.layer], [0], PAGE_SIZE, problem.dtype, device)
    return _layer(problem, MixedAttention(_own(problem), kernel, *rest, least_rows=2, most_keys=most_keys))


def chosen(problem: AttentionProblem) -> Attend | None:
    """Return the backend that a server chooses on this device.

    None without a GPU, where that is another implementation.
    """
    if problem.device == "cpu":
        return None
    device = torch.device(problem.device)
    return _layer(problem, make_attention_backend([problem.layer], PAGE_SIZE, problem.dtype, device, problem.limits()))


def _own(problem: AttentionProblem) -> TritonAttention:
    device = torch.device(problem.device)
    return TritonAttention([problem.layer], PAGE_SIZE, problem.dtype, device, problem.limits(), assisted=[0])


def _layer(problem: AttentionProblem, backend: AttentionBackend) -> Attend:
    """Return a call that attends and writes the step's keys and values to the cache."""
    backend.begin(problem.spans)
    query, key, value = problem.query, problem.key, problem.value
    return lambda i: backend.attend(0, query, key, value, problem.keys[i], problem.values[i])


def gathered(problem: AttentionProblem) -> Attend | None:
    """Return SDPA over gathered pages; None unless all sequences have as many rows and keys."""
    first = problem.spans[0]
    if any((span.rows, span.total) != (first.rows, first.total) for span in problem.spans):
        return None
    batch, scale = len(problem.spans), problem.layer.scale
    pages = torch.tensor([page for span in problem.spans for page in span.pages], device=problem.device)
    query = problem.query[0].unflatten(1, (batch, first.rows)).transpose(0, 1)
    key = torch.arange(first.total, device=problem.device)
    mask = None if first.rows == 1 else key <= key[first.total - first.rows :, None]

    def seen(cache: torch.Tensor) -> torch.Tensor:
        found = cache.index_select(0, pages).unflatten(0, (batch, -1)).flatten(1, 2)
        return found[:, : first.total].transpose(1, 2)

    def attend(i: int) -> torch.Tensor:
        kv = seen(problem.keys[i]), seen(problem.values[i])
        if first.rows == first.total:
            out = F.scaled_dot_product_attention(query, *kv, is_causal=True, scale=scale, enable_gqa=True)
        else:
            out = F.scaled_dot_product_attention(query, *kv, attn_mask=mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return attend


def varlen(problem: AttentionProblem) -> Attend | None:
    """Return torch's varlen_attn over pages of the size that it requires; None without a GPU, and before torch 2.12."""
    if problem.device == "cpu":
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    counts = [-(-span.total // VARLEN_PAGE_SIZE) for span in problem.spans]
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for index, count in enumerate(counts):
        table[index, :count] = torch.arange(count) + sum(counts[:index])
    keys, values = (_in_pages(problem.spans, cache, sum(counts)) for cache in (problem.keys, problem.values))
    ends = torch.tensor([0, *(span.row + span.rows for span in problem.spans)], dtype=torch.int32, device="cuda")
    lengths = torch.tensor([span.total for span in problem.spans], dtype=torch.int32, device="cuda")
    starts = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    rows, total = (max(span[field] for span in problem.spans) for field in (1, 2))
    query, table = problem.query[0].transpose(0, 1).contiguous(), table.cuda()

    def attend(i: int) -> torch.Tensor:
        return varlen_attn(
            query, keys[i], values[i], ends, starts, rows, total,
            scale=problem.layer.scale, window_size=(-1, 0), enable_gqa=True, seqused_k=lengths, block_table=table,
        )  # fmt: skip

    return attend


def _in_pages(spans: Sequence[Span], caches: torch.Tensor, count: int) -> torch.Tensor:
    """Return the same tokens in pages of VARLEN_PAGE_SIZE, one sequence after the other."""
    layers, _, _, heads, dim = caches.shape
    out = caches.new_zeros(layers, count * VARLEN_PAGE_SIZE, heads, dim)
    place = 0
    for span in spans:
        pages = torch.as_tensor(span.pages, device=caches.device)
        out[:, place : place + span.total] = caches[:, pages].flatten(1, 2)[:, : span.total]
        place += -(-span.total // VARLEN_PAGE_SIZE) * VARLEN_PAGE_SIZE
    return out.view(layers, count, VARLEN_PAGE_SIZE, heads, dim)


CONTESTANTS: Mapping[str, Callable[[AttentionProblem], Attend | None]] = {
    "ours": ours,
    "written first": written_first,
    "with flash": flash,
    "chosen": chosen,
    "varlen_attn": varlen,
    "SDPA, gathered": gathered,
}
