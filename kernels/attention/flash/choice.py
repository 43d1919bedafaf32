"""From how many rows of a span on flash kernels are faster than ours, measured at start in hundredths of a second.

Where that is depends on the device, on torch's kernels, and on what the host takes to launch them, so no table of it
would do. Each way runs as steps run it, with the write to the cache, and with a past that has to be gathered; in a step
of so many rows that the device has more to do than the host, as it has in steps whose time matters.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ...integers import cdiv
from ..layout import AttentionBackend, AttentionLayer, Limits, Span
from ..triton.backend import TritonAttention
from .backend import MixedAttention
from .calls import Flash

logger = logging.getLogger(__name__)

SIZES = (16, 64, 256, 1024)  # rows of a span
STEP_ROWS, PAST = 2048, 256  # of a step, and of each of its spans
ROUNDS, CALLS = 3, 16  # calls of one step: layers share its plan

Run = Callable[[], object]
Clock = Callable[[Run], float]


def choose_least_rows(
    layers: Sequence[AttentionLayer],
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    flash: Flash,
    clock: Clock | None = None,
) -> int | None:
    """Return the least of SIZES from which on flash kernels win over all kinds of layers.

    None if they never do, or fail. layers: those that they can run. clock: gives the seconds of a run; by default those
    that this machine takes.
    """
    kinds, clock = list(dict.fromkeys(layers)), clock or partial(_seconds, device)
    least = None
    for rows in sorted(SIZES, reverse=True):
        try:
            ways = [_ways(layer, rows, page_size, dtype, device, flash) for layer in kinds]
            own, other = (sum(map(partial(_fastest, clock), runs)) for runs in zip(*ways, strict=True))
        except RuntimeError as error:
            logger.warning("prompts run without flash attention: %s", (str(error).splitlines() or [""])[0])
            return None
        if other >= own:
            break
        least = rows
    return least


def _ways(
    layer: AttentionLayer, rows: int, page_size: int, dtype: torch.dtype, device: torch.device, flash: Flash
) -> tuple[Run, Run]:
    """Return one layer of a step of spans of so many rows as two runs: by our own kernel, and with flash kernels."""
    count = STEP_ROWS // rows
    total = rows + PAST
    pages = cdiv(total, page_size)
    spans = [Span(i * rows, rows, total, range(i * pages, (i + 1) * pages)) for i in range(count)]
    own = TritonAttention([layer], page_size, dtype, device, Limits(STEP_ROWS, count, total), assisted=[0])
    mixed = MixedAttention(own, flash, [layer], [0], page_size, dtype, device, least_rows=rows, most_keys=count * total)
    new = partial(torch.zeros, dtype=dtype, device=device)
    query = new(1, layer.heads, STEP_ROWS, layer.key_dim)
    key, value = (new(1, layer.kv_heads, STEP_ROWS, dim) for dim in (layer.key_dim, layer.value_dim))
    caches = [new(count * pages, page_size, layer.kv_heads, dim) for dim in (layer.key_dim, layer.value_dim)]

    def run(backend: AttentionBackend) -> None:
        backend.begin(spans)
        for _ in range(CALLS):
            backend.attend(0, query, key, value, *caches)

    return partial(run, own), partial(run, mixed)


def _fastest(clock: Clock, run: Run) -> float:
    """Return the least seconds of several runs, after a first one in which kernels are compiled."""
    run()
    return min(clock(run) for _ in range(ROUNDS))


def _seconds(device: torch.device, run: Run) -> float:
    """Return the seconds until the device has finished a run."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
