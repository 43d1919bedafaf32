"""Low-rank terms inside a mixture of experts, as their formula reads: the oracle of the tests."""

from collections.abc import Sequence

import torch

from ..site_plan import OpSegment


def naive_expert_delta(
    segments: Sequence[OpSegment], parameter: str, x: torch.Tensor, experts: torch.Tensor
) -> torch.Tensor:
    """Return the sum over the segments on a pair's token of `weight · b[e] (a[e] x)`, in float64.

    x: (tokens · k, in), the pairs of one token adjoining. experts: (tokens, k). Returns (tokens · k, out).
    """
    k, pairs = experts.shape[1], experts.flatten().tolist()
    own = [segment for segment in segments if segment.op.fields["parameter"] == parameter]
    delta = x.new_zeros(len(pairs), own[0].op.fields["b"].shape[1], dtype=torch.float64)
    for op, weight, start, end, _ in own:
        a, b = op.fields["a"].double(), op.fields["b"].double()
        for pair in range(start * k, end * k):
            delta[pair] += weight * (b[pairs[pair]] @ (a[pairs[pair]] @ x[pair].double()))
    return delta
