from benchmarks.kernels.model.fit import summary
from benchmarks.kernels.model.measured import device_of, read, shares
from benchmarks.kernels.model.persistent import persistent_us, points

MOST = 1.35


def test_the_kernel_before_is_explained_on_both_cards_within_a_third() -> None:
    found = list(points())
    print(summary(found))
    assert len(found) == 39
    assert {point.name.split(", ")[-1] for point in found} == {"NVIDIA H200", "NVIDIA H100 80GB HBM3"}
    assert [point for point in found if not 1 / MOST <= point.ratio <= MOST] == []


def test_more_blocks_than_programs_follow_each_other() -> None:
    """64 single rows of as many adapters fill the device many times over, one tile of 16 does not."""
    device = device_of(read())
    one, many = (persistent_us(shares(*step), device) for step in ((16, 1, "16"), (64, 64, "16")))
    assert many > 4 * one
