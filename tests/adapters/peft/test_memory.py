"""What is the machine's and not an adapter's."""

import pytest
import torch

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.memory import is_out_of_memory, is_servers


def test_torchs_own_words_on_a_cpu_are_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "memory", "servers"),
    [
        (MemoryError(), True, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, True),
        (OSError(5, "Input/output error"), False, True),
        (RuntimeError("shape '[2]' is invalid"), False, False),
        (InvalidAdapter("not enough memory"), False, False),
    ],
)
def test_whose_fault_it_is(error: Exception, memory: bool, servers: bool) -> None:
    assert (is_out_of_memory(error), is_servers(error)) == (memory, servers)
