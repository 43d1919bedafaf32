"""Whose fault is what was raised: ours is never told as the client's."""

import pytest
import torch

from peftserve.adapters.errors import AdapterDamaged, AdapterError, AdapterFailed, InvalidAdapter, NoMemoryForAdapter
from peftserve.server.engine.faults import SERVERS_FAULT, of_adapter, of_step
from peftserve.server.wire.faults import EngineFault, OutOfMemory, StepFailed


def torchs_own() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    return raised.value


@pytest.mark.parametrize(
    ("raised", "adapter", "step"),
    [
        (MemoryError(), NoMemoryForAdapter, OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory"), NoMemoryForAdapter, OutOfMemory),
        (torchs_own(), NoMemoryForAdapter, OutOfMemory),
        (OSError(5, "Input/output error"), AdapterDamaged, StepFailed),
        (RuntimeError("/secret/path"), AdapterFailed, StepFailed),
        (ZeroDivisionError(), AdapterFailed, StepFailed),
    ],
)
def test_what_is_ours_is_told_as_ours(
    raised: Exception, adapter: type[AdapterError], step: type[EngineFault], caplog: pytest.LogCaptureFixture
) -> None:
    told = of_adapter(raised)
    assert type(told) is adapter
    assert isinstance(told, SERVERS_FAULT)
    assert type(of_step(raised)) is step
    assert "/secret" not in told.message + of_step(raised).message
    assert caplog.records, "the log has the cause"


def test_what_is_the_clients_stays_so() -> None:
    mistake = InvalidAdapter("no such module")
    assert of_adapter(mistake) is mistake
