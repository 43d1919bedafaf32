"""What the linears of a quantised base do to their inputs, found out by what they give.

Some round their inputs before they multiply. Then two correct passes may differ by more than the rounding of a type.
Of these, some take the scale or the form of that rounding from all rows of a call: then a token's output depends on
what else is in the batch.
"""

from collections.abc import Iterator

import torch
from torch import nn

from peftserve.adapters.peft.plain import device_of, is_plain_linear

_ROWS = 8
_LARGE = 5.0  # a feature of each probe, beside which what is rounded with one scale for a row loses digits
_LARGER = 50.0  # all features of the neighbours; no power of two, by which floating-point codes would stay the same
# Differences to the root mean square of what is compared. 16-bit types round to 0.002 of it, int8 and fp8 inputs to
# 0.008 or more.
_SAME = 0.005


def quantised_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the modules that have the widths of a linear, but may not be one product of numbers as they are.

    Linears of a model's own class, such as a router that chooses as well, are no format of numbers.
    """
    for name, module in model.named_modules():
        widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
        own = type(module).__module__.startswith("transformers.models.")
        if all(isinstance(width, int) for width in widths) and not own and not is_plain_linear(module):
            yield name, module


@torch.no_grad()
def rounds_inputs(linear: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether a linear rounds its inputs: the sum of two outputs is not the output of the sum."""
    one, other = _probes(linear, dtype)
    y = linear(torch.cat([one, other, torch.zeros_like(one), one + other])).float()  # one call: it may be a slow one
    of_one, of_other, of_nothing, of_sum = y.split(_ROWS)
    return _differ(of_sum, of_one + of_other - of_nothing)


@torch.no_grad()
def mixes_rows(linear: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether a linear gives other outputs for a row beside rows of large numbers."""
    one, other = _probes(linear, dtype)
    return _differ(linear(torch.cat([one, _LARGER * other]))[:_ROWS].float(), linear(one).float())


def _probes(linear: nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two inputs (rows, in_features), of which the first has one large feature and the second has two."""
    width = int(linear.in_features)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(_ROWS, width, generator=generator) for _ in range(2))
    one[:, 0], other[:, -1] = _LARGE, _LARGE
    device = device_of(linear)
    return one.clamp(-_LARGE, _LARGE).to(device, dtype), other.to(device, dtype)


def _differ(got: torch.Tensor, expected: torch.Tensor) -> bool:
    scale = expected.square().mean().sqrt().clamp(min=1e-30)
    return not ((got - expected).square().mean().sqrt() / scale).item() <= _SAME
