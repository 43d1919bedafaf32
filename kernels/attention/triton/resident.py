"""How many programs of a decode's attention a multiprocessor holds, read off the kernel as this compiler made it.

No program waits for another, so nothing breaks where fewer fit than are launched. But keys are split so that all
programs end at once, and a program that begins when others end doubles the time of a small step.
"""

from collections.abc import Sequence

import torch

from ...device.occupancy import multiprocessor, programs_at_once, resources
from ..layout import AttentionLayer, Limits
from .backend import TritonAttention


def resident_programs(
    layers: Sequence[AttentionLayer], page_size: int, dtype: torch.dtype, device: torch.device
) -> int | None:
    """Return the least number over all kinds of layers; None where triton interprets its kernels."""
    found = list[int]()
    for layer in dict.fromkeys(layers):
        backend = TritonAttention([layer], page_size, dtype, device, Limits(1, 1, page_size))
        for decode in backend.warm_up()[:1]:
            found.append(programs_at_once(resources(decode), multiprocessor(device)))
    return max(min(found), 1) if found else None
