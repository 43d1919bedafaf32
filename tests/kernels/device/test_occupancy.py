from types import SimpleNamespace

import pytest

from peftserve.kernels.device.occupancy import Multiprocessor, Resources, programs_at_once, resources

H100 = Multiprocessor(registers=65536, shared=233472, threads=2048)


@pytest.mark.parametrize(
    ("taken", "programs"),
    [
        (Resources(threads=256, registers=128, spilled=0, shared=16384), 2),
        (Resources(threads=256, registers=32, spilled=0, shared=100_000), 2),
        (Resources(threads=1024, registers=16, spilled=0, shared=0), 2),
        (Resources(threads=256, registers=255, spilled=0, shared=0), 1),
        (Resources(threads=512, registers=255, spilled=0, shared=0), 0),
    ],
)
def test_whatever_runs_out_first(taken: Resources, programs: int) -> None:
    assert programs_at_once(taken, H100) == programs


def test_resources_are_read_off_the_compiled_kernel() -> None:
    metadata = SimpleNamespace(num_warps=8, target=SimpleNamespace(warp_size=32), shared=4096)
    kernel = SimpleNamespace(metadata=metadata, n_regs=96, n_spills=8)
    assert resources(kernel) == Resources(256, 96, 8, 4096)
