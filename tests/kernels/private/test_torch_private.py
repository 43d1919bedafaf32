from types import SimpleNamespace

import pytest
import torch

from peftserve.kernels.bypass.cpp.library import OPENMP_FUNCTIONS
from peftserve.kernels.private import torch_private
from tests.private_names import unresolved

PROPERTIES = {
    "regs_per_multiprocessor": torch_private.registers_of,
    "shared_memory_per_block_optin": torch_private.shared_memory_of,
}


def test_torch_brings_the_threads_of_its_openmp_runtime() -> None:
    assert torch_private.library().exists(), torch_private.NAMES["torch/lib/libtorch_cpu.so"]
    for name in OPENMP_FUNCTIONS:
        assert torch_private.openmp_function(name) != 0, torch_private.NAMES["torch/lib/libtorch_cpu.so"]
    with pytest.raises(AttributeError):
        torch_private.openmp_function("no_such_function")


@pytest.mark.skipif(not hasattr(torch._C, "_CudaDeviceProperties"), reason="this torch was built without CUDA")
@pytest.mark.parametrize("name", PROPERTIES)
def test_a_gpu_says_what_its_multiprocessors_have(name: str) -> None:
    full_name = f"{torch_private.OF_DEVICE}.{name}"
    assert not unresolved([full_name]), torch_private.NAMES[full_name]


def test_what_torch_does_not_say_is_taken_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    old = SimpleNamespace(shared_memory_per_multiprocessor=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: old)
    assert [known(device) for known in PROPERTIES.values()] == [65536, 100]
    new = SimpleNamespace(**vars(old), regs_per_multiprocessor=1, shared_memory_per_block_optin=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: new)
    assert [known(device) for known in PROPERTIES.values()] == [1, 2]
