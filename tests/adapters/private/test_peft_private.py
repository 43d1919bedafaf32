import pytest
import torch
from torch import nn

from peftserve.adapters.private.peft_private import NAMES, solve_frod_again

peft = pytest.importorskip("peft")


def test_every_name_is_there_and_frod_is_solved_for_the_basis_that_was_loaded() -> None:
    """Signs of a basis change with the machine: U follows V, so that what the layer adds is the same."""
    from peft.tuners.frod.layer import FrodLayer

    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(6, 6, bias=False)), peft.FrodConfig(target_modules=["0"], progressbar=False)
    )
    (layer,) = [module for module in model.modules() if isinstance(module, FrodLayer)]
    assert all(hasattr(layer, name.removeprefix("peft.tuners.frod.layer.FrodLayer.")) for name in NAMES)
    v, u = layer.frod_V["default"], layer.frod_U["default"].clone()
    signs = torch.tensor([1.0, -1, 1, -1, 1, -1])
    layer.frod_V["default"] = v * signs
    solve_frod_again(layer, torch.float32)
    torch.testing.assert_close(layer.frod_U["default"], u * signs, rtol=1e-4, atol=1e-5)
