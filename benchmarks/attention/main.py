"""Paged attention of one layer, timed on a GPU beside torch's own implementations and the least time for its bytes.

    python -m benchmarks.attention [--out FILE.json]     # Llama-3.1-8B's layer in bf16
    python -m benchmarks.attention --check               # correctness alone, at a small size; also without a GPU

Each contestant is checked against float64 before it is timed. It runs over so many layers that no cache holds them, in
one CUDA graph, and takes turns with the others.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

from peftserve.kernels.attention.factory import make_attention_backend
from peftserve.kernels.attention.flash.backend import MixedAttention
from peftserve.kernels.attention.flash.calls import sdpa_flash, torch_flash
from peftserve.kernels.attention.layout import AttentionBackend, AttentionLayer, Span
from peftserve.kernels.attention.triton.backend import TritonAttention

from ..kernels.contender import Run
from ..kernels.roofline import Roofline, measure_roofline
from ..kernels.timing import captured, medians
from ..tables import Table
from .problem import PAGE_SIZE, Attend, AttentionProblem, Sequences

VARLEN_PAGE_SIZE = 256
CACHE_BYTES = 256 << 20  # of keys and values, under which a device's cache might hold them
ROUNDS, MOST_LAYERS, TOLERANCE = 20, 64, 1e-2
LLAMA_8B = AttentionLayer(32, 8, 128, 128, 128**-0.5)
SMALL = AttentionLayer(4, 2, 16, 16, 0.25)

STEPS: dict[str, Sequences] = {
    "1 decode of 512": [(1, 511)],
    "16 decodes of 512": [(1, 511)] * 16,
    "64 decodes of 512": [(1, 511)] * 64,
    "256 decodes of 512": [(1, 511)] * 256,
    "1 decode of 32768": [(1, 32767)],
    "16 decodes of 8192": [(1, 8191)] * 16,
    "64 decodes of 64 to 4096": [(1, 63 + 64 * i) for i in range(64)],
    "prefill of 2048": [(2048, 0)],
    "prefill of 512 after 1536": [(512, 1536)],
    "the same beside 64 decodes": [(1, 511)] * 64 + [(512, 1536)],
}
SMALL_STEPS: dict[str, Sequences] = {
    "3 decodes": [(1, 40)] * 3,
    "2 prefills": [(9, 40)] * 2,
    "mixed": [(1, 20), (9, 3), (5, 0)],
}


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


def ready(problem: AttentionProblem, prepare: Callable[[Attend], Run]) -> dict[str, Run]:
    """Return the contestants that can run the step and are right, each prepared for timing.

    Prints why others are not.
    """
    found = {}
    for name, make in CONTESTANTS.items():
        try:
            if (attend := make(problem)) is None:
                continue
            error = problem.error(attend)
            assert error < TOLERANCE, f"it is wrong by {error:.1e}"
            found[name] = prepare(attend)
        except Exception as failed:  # whatever it is, the others are still to be measured
            print(f"  without {name}: {type(failed).__name__}: {(str(failed).splitlines() or [''])[0]}")
    return found


def timed(name: str, sequences: Sequences, roofline: Roofline) -> dict[str, float]:
    """Return the microseconds of one layer by contestant, for those that run."""
    one = AttentionProblem(LLAMA_8B, sequences, torch.bfloat16, "cuda", 1)
    layers = max(2, min(MOST_LAYERS, -(-CACHE_BYTES // one.least_work().num_bytes)))
    problem = AttentionProblem(LLAMA_8B, sequences, torch.bfloat16, "cuda", layers)

    def over_layers(attend: Attend) -> None:
        for i in range(layers):
            attend(i)

    runs = ready(problem, lambda attend: captured(partial(over_layers, attend), "cuda"))
    times = {who: seconds / layers * 1e6 for who, seconds in medians(runs, "cuda", ROUNDS).items()}
    times["floor"] = roofline.seconds(problem.least_work()) * 1e6
    ratio = times["chosen"] / times["floor"] if "chosen" in times else None
    print(figures().line(name, *(times.get(who) for who in (*CONTESTANTS, "floor")), ratio))
    return times


def figures() -> Table:
    return Table({"": "<32", **dict.fromkeys((*CONTESTANTS, "floor"), "16.1f"), "chosen/floor": "14.2f"})


def check(device: str) -> list[dict[str, Run]]:
    """Check every contestant at the small steps, and print which are right."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found = list[dict[str, Run]]()
    for name, sequences in SMALL_STEPS.items():
        problem = AttentionProblem(SMALL, sequences, dtype, device, 1)
        found.append(ready(problem, lambda attend: partial(attend, 0)))
        print(f"{name}: right are {', '.join(found[-1]) or 'none'}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.check:
        return status(check("cuda" if torch.cuda.is_available() else "cpu"))
    roofline = measure_roofline("cuda", torch.bfloat16)
    device = torch.cuda.get_device_name()
    print(f"{device}: {roofline}; microseconds of a layer")
    print(figures().heading())
    found = {name: timed(name, sequences, roofline) for name, sequences in STEPS.items()}
    if args.out:
        args.out.write_text(json.dumps({"device": device, "us": found}) + "\n", encoding="utf-8")
    return status(list(found.values()))


def status(steps: Sequence[Mapping[str, object]]) -> int:
    """Return 1 if ours failed at any step."""
    return int(any("ours" not in found for found in steps))


if __name__ == "__main__":
    sys.exit(main())
