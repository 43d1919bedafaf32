"""What transformers' own attention gives for a prompt, and by how much other ways of running it may differ."""

from dataclasses import dataclass, replace

import torch

from .errors import UnservableModel

# What log-probabilities may differ by, in standard deviations of the logits.
_TOLERANCE = 0.01  # in float32, of any token
_TOLERANCE_OF_16_BITS = 0.2  # root mean square of a token's, for half of the tokens: rounding can flip an expert


@dataclass(frozen=True)
class Trace:
    """A prompt and the logits that transformers' own attention gives for it: what other ways of running must give.

    token_ids: (tokens,). logits: (tokens, vocabulary) float32. dtype: the model's. rounded: whether its linears round
    their inputs, so that two correct passes in float32 differ as in a type of 16 bits.
    """

    token_ids: torch.Tensor
    logits: torch.Tensor
    dtype: torch.dtype
    rounded: bool = False

    def first(self, num_tokens: int) -> "Trace":
        """Return the trace of the first tokens alone: attention is causal, so their logits are the same."""
        return replace(self, token_ids=self.token_ids[:num_tokens], logits=self.logits[:num_tokens])

    def of(self, rows: torch.Tensor) -> "Trace":
        """Return the trace with the logits of these rows only."""
        return replace(self, logits=self.logits[rows])

    def check(self, logits: torch.Tensor, what: str) -> None:
        """Raise UnservableModel if logits differ from these by more than the rounding of the model's type explains.

        what: what gave them, for the message.
        """
        check_logits(logits.float(), self.logits, what, exact=self.is_exact)

    @property
    def is_exact(self) -> bool:
        """Return whether two correct passes differ by the rounding of float32 only."""
        return self.dtype == torch.float32 and not self.rounded


def check_logits(logits: torch.Tensor, wanted: torch.Tensor, what: str, *, exact: bool) -> None:
    """Raise UnservableModel if logits differ from those wanted by more than rounding explains.

    logits, wanted: (tokens, vocabulary) float32. what: gave the logits, for the message. exact: the model computes in
    float32 throughout.
    """
    differences = logits.log_softmax(-1) - wanted.log_softmax(-1)
    scale = max(wanted.std(-1).mean().item(), 1.0)
    if exact:
        difference, tolerance = differences.abs().max().item(), _TOLERANCE
    else:
        difference, tolerance = differences.square().mean(-1).sqrt().median().item(), _TOLERANCE_OF_16_BITS
    if not difference <= scale * tolerance:
        raise UnservableModel(f"its logits with {what} are off by {difference:.3g}: it uses attention unknown here")
