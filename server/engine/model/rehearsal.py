"""What the check at start runs, and what transformers itself gives for it: sequences in the pieces that requests bring.

Knows no runner: made while the model still has transformers' own attention.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from .trace import Trace

_LONG, _SHORT = 29, 9  # tokens of the longest sequence where no window asks for more, and of the shortest
_MOST_ON_A_CPU, _MOST = 160, 1400  # tokens of the longest sequence, however far a window reaches
_BEYOND = 9  # tokens past a window
_WINDOWS = re.compile(r"\w*(window|attention_chunk)\w*|local_attention")

Forward = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""From token ids (tokens,), rows (kept,) and the prompt's length to these rows' logits, (kept, vocabulary) float32, as
transformers generates them.
"""


@dataclass(frozen=True)
class Rehearsal:
    """A sequence, the pieces that it is run in, and the logits that the last token of each has.

    cuts: where each piece begins, and the end of the last. logits: (pieces, vocabulary) float32.
    """

    token_ids: list[int]
    cuts: tuple[int, ...]
    logits: torch.Tensor

    def first(self, num_tokens: int) -> "Rehearsal":
        """Return as many of the first pieces as are within so many tokens."""
        cuts = tuple(cut for cut in self.cuts if cut <= num_tokens)
        return Rehearsal(self.token_ids[: cuts[-1]], cuts, self.logits[: len(cuts) - 1])


def rehearsals(trace: Trace, long: torch.Tensor, forward: Forward, *, generated: bool = False) -> tuple[Rehearsal, ...]:
    """Cut three sequences so that, side by side, chunks run beside chunks, then beside decodes, then decodes alone.

    The longest is `long`, of which `forward` gives the logits; the others are of the trace's prompt, which has them.
    generated: let `forward` give these too, because a pass over a whole prompt computes otherwise than a decode.
    """
    shorter = ((len(trace.token_ids), (2, 3)), (_SHORT, (1, 4)))
    if generated:
        others = [_by(forward, trace.token_ids[:length], *how) for length, how in shorter]
    else:
        others = [_of(trace, trace.token_ids[:length].tolist(), *how) for length, how in shorter]
    return (_by(forward, long, chunks=3, decodes=2), *others)


def longest(config: PreTrainedConfig, device: torch.device, limit: int) -> int:
    """Return how many tokens the longest sequence has: past each window of a model that is not too far for a start.

    limit: of the model's positions.
    """
    most = _MOST_ON_A_CPU if device.type == "cpu" else _MOST
    past = (window + window // 8 + _BEYOND for window in _windows(config))
    return min(max([_LONG, *(length for length in past if length <= most)]), limit)


def _by(forward: Forward, ids: torch.Tensor, chunks: int, decodes: int) -> Rehearsal:
    cuts = _cuts(len(ids), chunks, decodes)
    rows = torch.tensor(cuts[1:], device=ids.device) - 1
    return Rehearsal(ids.tolist(), cuts, forward(ids, rows, _prompt(len(ids), decodes)))


def _of(trace: Trace, prompt: list[int], chunks: int, decodes: int) -> Rehearsal:
    cuts = _cuts(len(prompt), chunks, decodes)
    return Rehearsal(prompt, cuts, trace.logits[[cut - 1 for cut in cuts[1:]]])


def _windows(config: PreTrainedConfig) -> Iterator[int]:
    """Yield what the fields of a configuration say of how far a token sees."""
    for name, value in vars(config).items():
        if _WINDOWS.fullmatch(name) and isinstance(value, int) and value > 1:
            yield value


def _cuts(length: int, chunks: int, decodes: int) -> tuple[int, ...]:
    """Cut a sequence into chunks of about the same size, and decodes of one token each at its end."""
    prompt = _prompt(length, decodes)
    ends = sorted({-(-prompt * i // chunks) for i in range(1, chunks + 1)})
    return (0, *ends, *range(prompt + 1, length + 1))


def _prompt(length: int, decodes: int) -> int:
    return length - min(decodes, length - 1)
