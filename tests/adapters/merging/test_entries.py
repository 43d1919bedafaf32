"""Merges entry by entry, against the papers' formulas written as loops over single numbers."""

import numpy
import pytest
import torch

from peftserve.adapters.merging.entries import DELLA_SPREAD, MERGES, How, della_chances

SHAPE = (7, 11)
WEIGHTS = (0.7, -0.4, 1.3)


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SHAPE, generator=generator) for _ in WEIGHTS]


def how(density: float, majority_sign: str = "total") -> How:
    return How(density, majority_sign, torch.Generator().manual_seed(5))  # type: ignore[arg-type]


def merged(name: str, tensors: list[torch.Tensor], density: float, majority_sign: str = "total") -> numpy.ndarray:
    found = MERGES[name](tensors, torch.tensor(WEIGHTS), how(density, majority_sign))
    return found.double().numpy()


def elected_mean(values: list[numpy.ndarray], majority_sign: str) -> numpy.ndarray:
    """Sum up, at each entry, the weighted values of the sign that has the majority, and divide by their number."""
    out = numpy.zeros(SHAPE)
    for place in numpy.ndindex(SHAPE):
        column = [value[place] for value in values]
        votes = sum(column) if majority_sign == "total" else sum(numpy.sign(column))
        sign = 1 if votes >= 0 else -1
        agreeing = [weight * x for weight, x in zip(WEIGHTS, column, strict=True) if numpy.sign(x) == sign]
        out[place] = sum(agreeing) / max(1, len(agreeing))
    return out


@pytest.mark.parametrize("majority_sign", ["total", "frequency"])
def test_ties_trims_elects_and_averages(tensors: list[torch.Tensor], majority_sign: str) -> None:
    density, trimmed = 0.3, []
    for tensor in tensors:
        values = tensor.double().numpy()
        least = sorted(abs(values.reshape(-1)))[-int(density * values.size)]
        trimmed.append(numpy.where(abs(values) >= least, values, 0))
    assert merged("ties", tensors, density, majority_sign) == pytest.approx(
        elected_mean(trimmed, majority_sign), abs=1e-6
    )
    weighted = sum(weight * one for weight, one in zip(WEIGHTS, trimmed, strict=True))
    assert merged("magnitude_prune", tensors, density) == pytest.approx(weighted, abs=1e-6)


def test_dropping_keeps_a_share_and_the_mean(tensors: list[torch.Tensor]) -> None:
    """Each entry of one adapter is gone or divided by its chance; the mean over many draws is the tensor itself."""
    for name in ("dare_linear", "dare_ties", "della"):
        tensor, weights = torch.rand(40, 50) + 0.5, torch.tensor([1.0])
        chances = torch.full((40, 50), 0.6) if name != "della" else della_chances(tensor, 0.6)
        generator, total = torch.Generator().manual_seed(1), torch.zeros(40, 50)
        for _ in range(400):
            drawn = MERGES[name]([tensor], weights, How(0.6, "total", generator))
            kept = drawn != 0
            torch.testing.assert_close(drawn[kept], (tensor / chances)[kept])
            assert kept.float().mean() == pytest.approx(0.6, abs=0.05)
            total += drawn
        torch.testing.assert_close(total / 400, tensor, rtol=0.25, atol=0)


def test_della_drops_by_the_place_in_the_row() -> None:
    """p - ε/2 for the largest, p + ε/2 for the smallest of a row, with p = 1 - density, in equal steps."""
    tensor = torch.tensor([[0.1, -5.0, 2.0, -0.3, 1.0], [9.0, 8.0, -7.0, 6.0, 5.0]])
    half = DELLA_SPREAD / 2
    drop = 1 - della_chances(tensor, 0.4)
    steps = [0.6 - half, 0.6 - half / 2, 0.6, 0.6 + half / 2, 0.6 + half]
    places = [[4, 0, 1, 3, 2], [0, 1, 2, 3, 4]]
    torch.testing.assert_close(drop, torch.tensor([[steps[r] for r in row] for row in places]))
    for density in (0.01, 0.5, 0.97, 1.0):
        chances = della_chances(torch.randn(3, 20), density)
        assert chances.min() > 0
        assert chances.max() <= 1
        assert chances.mean() == pytest.approx(density)
    assert della_chances(torch.tensor([3.0]), 0.5).item() == pytest.approx(0.4)


def test_della_elects_and_averages_what_is_left(tensors: list[torch.Tensor]) -> None:
    generator, dropped = torch.Generator().manual_seed(5), []
    for tensor in tensors:
        chances = della_chances(tensor, 0.5)
        kept = torch.rand(SHAPE, generator=generator) < chances
        dropped.append(torch.where(kept, tensor / chances, 0).double().numpy())
    assert merged("della", tensors, 0.5) == pytest.approx(elected_mean(dropped, "total"), abs=1e-6)


@pytest.mark.parametrize("name", MERGES)
def test_all_is_kept_at_density_1(name: str, tensors: list[torch.Tensor]) -> None:
    same = [t.double().numpy() for t in tensors]
    plain = sum(weight * one for weight, one in zip(WEIGHTS, same, strict=True))
    elects = name in ("ties", "dare_ties", "della")
    assert merged(name, tensors, 1.0) == pytest.approx(elected_mean(same, "total") if elects else plain, abs=1e-6)
