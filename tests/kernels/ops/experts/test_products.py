import pytest
import torch

from peftserve.kernels.ops.experts.products import grouped_product


@pytest.mark.parametrize("transposed", [False, True])
def test_each_pair_meets_its_experts_matrix(transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ends, experts = torch.tensor([2, 2, 6, 7], dtype=torch.int32), [0, 0, 2, 2, 2, 2, 3]
    x = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    stored = torch.randn(4, 12, 20, dtype=torch.float64, generator=generator)
    matrices = stored if transposed else stored.mT.contiguous().mT
    wanted = torch.stack([x[place] @ stored[expert] for place, expert in enumerate(experts)])
    torch.testing.assert_close(grouped_product(x, matrices, ends), wanted)


def test_no_pairs() -> None:
    assert grouped_product(torch.zeros(0, 4), torch.zeros(2, 4, 6), torch.zeros(2, dtype=torch.int32)).shape == (0, 6)
