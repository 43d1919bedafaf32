"""What says that memory was wanting: no fault of an adapter, whatever was being done with it."""

import torch

_ON_A_CPU = "not enough memory", "can't allocate memory"  # of torch's RuntimeErrors there


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory of the host or the device was wanting."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _ON_A_CPU):
        return True
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def is_servers(error: BaseException) -> bool:
    """Return whether an exception says nothing of an adapter, but of the machine that reads it."""
    return is_out_of_memory(error) or isinstance(error, OSError)
