"""Weights with columns behind them are what they were to everybody else."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from peftserve.kernels.bypass.layout import Group, RowSet
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.adapters.packing import SiteGroups
from peftserve.server.engine.model.fused import fuse_siblings
from peftserve.server.engine.model.packed_linear import pack_linears
from peftserve.server.engine.model.wide import COLUMNS, spare_columns, widen

GROUPS = (Group(8, (6, 4)), Group(6, (8,)), Group(8, (5,), rows=RowSet.LOGITS), Group(9, (8,), gather=True))
PLACES = {"q": (0, 0), "k": (0, 1), "o": (1, 0), "head": (2, 0), "embedding": (3, 0)}
SITES = SiteGroups(GROUPS, PLACES)


def modules(bias: bool = True) -> dict[str, nn.Module]:
    linears = {"q": nn.Linear(8, 6, bias=bias), "k": nn.Linear(8, 4, bias=bias), "o": nn.Linear(6, 8)}
    return {**linears, "head": nn.Linear(8, 5), "embedding": nn.Embedding(9, 8)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_keep_their_numbers_and_are_views_of_wider_matrices(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    made = {name: module.to(dtype) for name, module in modules().items()}
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in made.items()}
    fused = fuse_siblings(made, SITES)
    with caplog.at_level(logging.INFO):
        wide = widen(made, SITES, fused, 16)
    assert {group: weight.shape for group, weight in wide.items()} == {0: (10, 24), 1: (8, 22)}
    assert f"take {(10 + 8) * 16 * dtype.itemsize / (1 << 20):.1f} MiB" in caplog.text
    for name, module in made.items():
        assert list(module.state_dict()) == list(before[name])
        assert all(torch.equal(value, before[name][key]) for key, value in module.state_dict().items())
    for weight, members in ((wide[0], (made["q"], made["k"], fused[0])), (wide[1], (made["o"],))):
        assert not weight[:, weight.shape[1] - 16 :].any()
        assert {m.get_parameter("weight").untyped_storage().data_ptr() for m in members} == {
            weight.untyped_storage().data_ptr()
        }
    x = torch.randn(3, 8, dtype=dtype)
    assert torch.equal(fused[0](x).split([6, 4], 1)[0], made["q"](x))


def test_packed_weights_are_the_modules_own_columns() -> None:
    made = {"o": nn.Linear(512, 768)}
    x = torch.randn(5, 512)
    wanted = made["o"](x)
    assert list(widen(made, SiteGroups((Group(512, (768,)),), {"o": (0, 0)}), {}, 24)) == [0]
    pack_linears(made.values(), 1 << 30)
    assert torch.allclose(made["o"](x), wanted, atol=1e-5)


def of_a_class_of_its_own(made: dict[str, nn.Module]) -> None:
    made["o"] = type("Quantised", (nn.Linear,), {})(6, 8)


def with_a_tied_weight(made: dict[str, nn.Module]) -> None:
    made["other"] = nn.Linear(6, 8)
    made["other"].weight = made["o"].weight  # type: ignore[assignment]


@pytest.mark.parametrize("change", [of_a_class_of_its_own, with_a_tied_weight], ids=lambda change: change.__name__)
def test_others_stay_as_they_are(change: Callable[[dict[str, nn.Module]], None]) -> None:
    made = modules()
    change(made)
    kept = made["o"].weight
    assert list(widen(made, SITES, {}, 16)) == [], "q and k are one group and no one product"
    assert made["o"].weight is kept
    assert kept.is_contiguous()


def test_none_is_none() -> None:
    made = modules()
    assert widen(made, SITES, fuse_siblings(made, SITES), 0) == {}
    assert [spare_columns(asked, torch.device("cpu")) for asked in (None, 0, 1, 64)] == [0, 0, 8, 64]
    assert [spare_columns(asked, torch.device("cuda")) for asked in (None, 0)] == [COLUMNS, 0]


def test_a_models_state_is_the_same_with_and_without(oracle: ModuleType, tmp_path: Path) -> None:
    """Names, order, bytes and fingerprint; and of those that are no plain linears there is nothing to widen."""
    states, prints, wide = [], [], []
    for architecture, columns in (("llama", 0), ("llama", 32), ("gpt2", 32)):
        folder = oracle.tiny_model(architecture, 0, tmp_path / architecture)
        engine = Engine(EngineConfig(str(folder), device="cpu", dtype="float32", wide_columns=columns))
        states.append(engine._model.state_dict())
        prints.append(engine.info.fingerprint)
        wide.append(engine.adapters.attachments.columns)
        engine.close()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert prints[0] == prints[1]
    assert [columns is None for columns in wide] == [True, False, True]
