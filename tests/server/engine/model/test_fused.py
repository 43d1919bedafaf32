from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.kernels.layout import Group
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.adapters.packing import SiteGroups
from peftserve.server.engine.model.fused import fuse_siblings, separate_modules
from peftserve.server.engine.model.hooks import _Siblings

SITES = SiteGroups((Group(8, (6, 4)), Group(6, (8,))), {"q": (0, 0), "k": (0, 1), "o": (1, 0)})


def modules(*, bias: bool = True) -> dict[str, nn.Module]:
    return {"q": nn.Linear(8, 6, bias=bias), "k": nn.Linear(8, 4, bias=bias), "o": nn.Linear(6, 8)}


@pytest.mark.parametrize("bias", [True, False])
def test_modules_are_rows_of_one_and_keep_their_numbers(bias: bool) -> None:
    made = modules(bias=bias)
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in made.items()}
    fused = fuse_siblings(made, SITES)
    assert list(fused) == [0]
    assert separate_modules(made, SITES, fused) == [made["o"]]
    for name, module in made.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[name][key])
    x = torch.randn(3, 8)
    assert torch.allclose(fused[0](x), torch.cat([made["q"](x), made["k"](x)], 1), atol=1e-6)
    for part in ("weight", "bias") if bias else ("weight",):
        whole = getattr(fused[0], part).untyped_storage().data_ptr()
        assert {getattr(made[name], part).untyped_storage().data_ptr() for name in "qk"} == {whole}


def with_bias_on_one(made: dict[str, nn.Module]) -> None:
    made["k"] = nn.Linear(8, 4, bias=False)


def of_two_types(made: dict[str, nn.Module]) -> None:
    made["k"] = made["k"].half()


def of_a_class_of_its_own(made: dict[str, nn.Module]) -> None:
    made["k"] = type("Quantised", (nn.Linear,), {})(8, 4)


def with_a_tied_weight(made: dict[str, nn.Module]) -> None:
    made["embedding"] = nn.Embedding(4, 8)
    made["embedding"].weight = made["k"].weight  # type: ignore[assignment]


def with_a_layout_of_its_own(made: dict[str, nn.Module]) -> None:
    made["k"].forward = made["k"].forward  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "change",
    [with_bias_on_one, of_two_types, of_a_class_of_its_own, with_a_tied_weight, with_a_layout_of_its_own],
    ids=lambda change: change.__name__,
)
def test_others_stay_apart(change: Callable[[dict[str, nn.Module]], None]) -> None:
    made = modules()
    change(made)
    assert fuse_siblings(made, SITES) == {}


def test_a_model_that_cannot_take_parts_gets_products_of_its_own(
    oracle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one whose code wants adjoining elements: its first pass fails, and it is served without."""
    base = _Siblings._base

    def refuse(self: _Siblings, *args: Any) -> Any:
        if self.fused is not None:
            raise RuntimeError("view size is not compatible with input tensor's size and stride")
        return base(self, *args)

    monkeypatch.setattr(_Siblings, "_base", refuse)
    engine = Engine(EngineConfig(model=str(oracle.tiny_model("llama", 0, tmp_path)), device="cpu"))
    engine.close()
    assert "one by one: view size is not compatible" in caplog.text
