"""One module of the base whose `forward` is wrapped: its output with the step's plan, but without low-rank bypasses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from peftserve.kernels.ops.site_plan import SitePlan


@dataclass(frozen=True)
class WrappedModule:
    """A linear or an embedding, with the forward that it had before it was wrapped.

    forward: the base's own. width: of its output, without what a larger vocabulary adds.
    """

    name: str
    module: nn.Module
    forward: Callable[..., torch.Tensor]
    width: int

    def run(
        self,
        x: torch.Tensor,
        plan: SitePlan | None,
        streams: Mapping[str, torch.Tensor],
        output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the base's output with all that the step's plan adds to it, which is all but the low-rank bypasses.

        streams: inputs of other modules that the plan reads, by name. output: the base's output for x, if known.
        """
        if plan is None:
            return self.forward(x) if output is None else output
        rows = flat_rows(x)
        y = self._base(plan.before(rows), x) if output is None else output.view(-1, self.width)
        y = plan.after(rows, y, lambda some: self._base(some, x), streams)
        return y.view(*_leading(x), y.shape[-1])  # of no rows, if a step is all chunks of prompts: so no -1 here

    def _base(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output (rows, width) for a linear's (rows, in_features) or an embedding's (rows,) ids.

        x: the input as the model gives it, whose number of dimensions the base may expect.
        """
        if x.is_floating_point():
            shaped = rows.view(*[1] * (x.dim() - 2), *rows.shape)
            return self.forward(shaped).flatten(0, -2)
        known, shaped = self.knows(rows), rows.view(*[1] * (x.dim() - 1), -1)
        y = self.forward(shaped.clamp(max=self.ids - 1)).flatten(0, -2)
        return y.masked_fill_(~known[:, None], 0)

    @property
    def ids(self) -> int:
        """Return how many ids an embedding has rows of. Ids of a larger vocabulary are replaced behind the base."""
        count: int = self.module.num_embeddings  # type: ignore[assignment]
        return count

    def knows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return for each id whether the base's embedding has a row of it."""
        return ids < self.ids


def flat_rows(x: torch.Tensor) -> torch.Tensor:
    """Return a linear's input as (rows, width), an embedding's as (rows,) ids."""
    return x.flatten(0, -2) if x.is_floating_point() else x.flatten()


def _leading(x: torch.Tensor) -> torch.Size:
    """Return all dimensions of the output but its width."""
    return x.shape[:-1] if x.is_floating_point() else x.shape


def side_by_side(norm: Callable[..., torch.Tensor], count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a norm as a function of one tensor, which holds its `count` inputs side by side."""
    return lambda x: norm(*x.chunk(count, -1))
