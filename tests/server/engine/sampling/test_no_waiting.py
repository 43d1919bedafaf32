"""That a step is enqueued without a look at anything that the device has yet to compute.

Without a GPU the device is `meta`, whose tensors have shapes and no numbers: what needs a number there cannot run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peftserve.server.engine.sampling import PendingTokens, Sampler, SampleRow, start_prompt_logprobs
from peftserve.server.wire.messages import SamplingParams

VOCAB = 900
Start = Callable[[Sampler, Tensor, list[SampleRow]], PendingTokens]
PLAIN = SamplingParams(temperature=0.0)
STEPS = {
    "greedy": [PLAIN] * 3,
    "drawn": [SamplingParams()] * 3,
    "truncated": [SamplingParams(top_k=k, top_p=p, min_p=0.1) for k, p in ((3, 1.0), (0, 0.5), (2000, 0.0))],
    "edited": [
        PLAIN,
        SamplingParams(logit_bias={7: 3.0, 5 * VOCAB: 1.0}),
        SamplingParams(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.3),
    ],
    "reported": [SamplingParams(logprobs=2), PLAIN, SamplingParams(temperature=0.0, logprobs=0)],
    "many": [SamplingParams(top_p=0.9, logprobs=1)] * 150,
}


class Watch(TorchDispatchMode):
    """Lets nothing pass that would make the host wait for a device; counts the copies to it and from it.

    Follows what comes out of each operation, since torch copies lists of the host to a device behind its back.
    """

    def __init__(self, there: Tensor, pinned: list[Tensor]) -> None:
        """there: what is on the device already."""
        super().__init__()
        self._device = there.device
        self._pinned = pinned
        self._known = {id(there): there}
        self.copies = {"to": 0, "from": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_to_copy" and kwargs.get("device", args[0].device) != args[0].device:
            assert kwargs["device"] == self._device
            self._copied("to", args[0], kwargs.get("non_blocking"))
        elif name == "copy_" and args[1].device != args[0].device:
            self._copied("from", args[0], *args[2:])
            return args[0]  # there is nothing to copy
        else:
            self._check(name, _tensors((args, kwargs)))
        result = func(*args, **kwargs)
        self._known |= {id(tensor): tensor for tensor in _tensors(result)}
        return result

    def _check(self, name: str, tensors: list[Tensor]) -> None:
        if any(tensor.device == self._device for tensor in tensors):
            known = [tensor.device == self._device and id(tensor) in self._known for tensor in tensors]
            assert all(known), f"{name} takes what was not copied before"

    def _copied(self, way: str, host: Tensor, non_blocking: bool | None = None) -> None:
        assert non_blocking
        assert any(host.data_ptr() == memory.data_ptr() for memory in self._pinned), "from or to memory not pinned"
        self.copies[way] += 1


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def nothing_waits(logits: Tensor, pinned: list[Tensor], copies: int = 1) -> Iterator[None]:
    """copies: to the device."""
    with Watch(logits, pinned) as watch:
        yield
    assert watch.copies == {"to": copies, "from": 1}


def rows_of(params: list[SamplingParams]) -> list[SampleRow]:
    return [SampleRow(p, [1, 2, 3, VOCAB + 8], [4] * (i % 4), seed=i) for i, p in enumerate(params)]


@pytest.mark.parametrize("params", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("banned", [(), (1, VOCAB)])
def test_a_step(pinned: list[Tensor], start: Start, params: list[SamplingParams], banned: tuple[int, ...]) -> None:
    logits = torch.empty(len(params), VOCAB, dtype=torch.bfloat16, device="meta")
    rows = rows_of(params)
    rows[0].banned_token_ids = banned
    plain = all(p.temperature == 0.0 and p.logprobs is None for p in params)
    edited = bool(banned) or any(p.logit_bias for p in params)
    with nothing_waits(logits, pinned, (not plain) + edited):
        sampling = start(Sampler(VOCAB, logits.device, len(rows)), logits, rows)
    assert (sampling.token_ids.device, sampling.token_ids.dtype) == (logits.device, torch.int64)
    assert sampling.token_ids.shape == (len(params),)


def test_scores_of_a_prompt(pinned: list[Tensor]) -> None:
    logits = torch.empty(150, VOCAB, device="meta")
    with nothing_waits(logits, pinned):
        start_prompt_logprobs(logits, range(150), top=3)


@pytest.mark.parametrize(
    "look",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.any()),
        lambda there: there[there > 0],
        lambda there: there[[0, 1]],
        lambda there: there + torch.tensor([1, 2, 3], device=there.device),
        lambda there: there[torch.tensor([0, 1])],
        lambda there: there + torch.ones(3).to(there.device),
        lambda there: there.nonzero(),
        lambda there: there.tolist(),
        lambda there: torch.zeros(3).copy_(there),
    ],
)
def test_what_would_wait_is_noticed(pinned: list[Tensor], look: Any) -> None:
    there = torch.empty(3, device="meta")
    with pytest.raises((AssertionError, RuntimeError)), Watch(there, pinned):
        look(there)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("params", STEPS.values(), ids=STEPS)
def test_a_gpu_does_not_wait(device: str, start: Start, params: list[SamplingParams]) -> None:
    if device == "cpu":
        pytest.skip("for --device cuda")
    logits, rows = torch.randn(len(params), VOCAB, device=device), rows_of(params)
    sampler = Sampler(VOCAB, logits.device, len(rows))
    expected = start(sampler, logits, rows).result()  # the first time also makes the memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampling = start(sampler, logits, rows)
        pending = start_prompt_logprobs(logits, [5] * len(rows), top=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sampling.result() == expected
    assert len(pending.result()) == len(rows)
