"""The base's own products of a mixture: each pair with its expert's matrix, the pairs of one expert adjoining."""

import torch
import torch.nn.functional as F

_ALIGNMENT = 16  # bytes of a row that torch's grouped product asks of a GPU


def grouped_product(x: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return `y[i] = x[i] matrices[e]`, e being the expert of place i.

    x: (pairs, in). matrices: (experts, in, out), of any strides. ends: (experts,) int32. One launch on GPUs that have a
    grouped product (sm_90 and later, in bfloat16). Before sm_90 torch itself waits for `ends`. On a CPU one product an
    expert is as fast, and experts without pairs cost nothing.
    """
    if x.is_cuda and _is_aligned(x) and _is_aligned(matrices):
        grouped: torch.Tensor = F.grouped_mm(x, matrices, offs=ends)
        return grouped
    y = x.new_empty(x.shape[0], matrices.shape[2])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], matrices[expert], out=y[start:end])
        start = end
    return y


def _is_aligned(matrix: torch.Tensor) -> bool:
    size = matrix.element_size()
    return all(stride == 1 or stride * size % _ALIGNMENT == 0 for stride in matrix.stride())
