import numpy as np
import torch

from peftserve.kernels.device.copies import pinned, to_device


def test_what_is_sent_is_the_array(device: str) -> None:
    array = np.arange(7, dtype=np.int32)
    there = to_device(array, torch.device(device))
    assert there.device.type == device
    assert there.dtype == torch.int32
    assert there.tolist() == array.tolist()


def test_memory_is_pinned_for_a_gpu_alone(device: str) -> None:
    array = np.zeros(3, dtype=np.float32)
    host = pinned(array, torch.device(device))
    assert host.device.type == "cpu"
    assert host.is_pinned() == (device == "cuda")
    if device == "cpu":
        array[1] = 4.0
        assert host[1] == 4.0
