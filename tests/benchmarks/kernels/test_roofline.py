import pytest
import torch

from benchmarks.kernels.problem import SHAPES, Scenario
from benchmarks.kernels.roofline import AdapterShare, LeastWork, Roofline, least_work, shares_of
from peftserve.kernels.bypass.layout import Group


def test_a_step_by_hand() -> None:
    """Two sites on one input of 10 features, of 4 and 6 outputs; two adapters of ranks 2 and 3 on 5 and 1 tokens."""
    shares = [AdapterShare(2, 5), AdapterShare(3, 1), AdapterShare(9, 0)]
    cost = least_work([Group(10, (4, 6))], shares, torch.float16)
    elements = (2 + 3) * (10 + 4 + 10 + 6)
    assert cost.factors == 2 * elements
    assert cost.activations == 2 * 6 * (10 + 2 * (4 + 6))
    assert cost.flops == 2 * (5 * 2 * 30 + 1 * 3 * 30)


def test_one_adapter_of_rank_16_on_llama_8b_is_84_megabytes() -> None:
    shape = SHAPES["llama-8b"]
    cost = least_work(shape.groups, [AdapterShare(16, 1)], torch.bfloat16)
    assert cost.factors == pytest.approx(84e6, rel=0.01)
    many = least_work(shape.groups, [AdapterShare(16, 1)] * 64, torch.bfloat16)
    assert many.factors / 3.0e12 == pytest.approx(1.8e-3, rel=0.01)


@pytest.mark.parametrize(("num_bytes", "flops", "seconds"), [(100, 10, 10.0), (100, 1000, 20.0)])
def test_whichever_takes_longer(num_bytes: int, flops: int, seconds: float) -> None:
    roofline = Roofline(bandwidth=10.0, peak=50.0)
    assert roofline.seconds(LeastWork(num_bytes - 40, 40, flops)) == seconds


def test_shares_divide_the_rows() -> None:
    assert shares_of(Scenario("decode", 5, (8, 16))) == [AdapterShare(8, 3), AdapterShare(16, 2)]
    assert shares_of(Scenario("decode", 1, (8, 16))) == [AdapterShare(8, 1)]
