"""Which of a group's modules run when, on which input, and who gets which output, without a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.callouts import Call
from peftserve.server.engine.model.siblings import Siblings
from peftserve.server.engine.model.wrapped_module import WrappedModule

WIDTHS = {"q": 6, "k": 4}
IDS = 5  # rows of the embedding


class Bypasses:
    """Adds 10 to every output that it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []  # what, and at which positions

    def start(self, group: int, x: torch.Tensor) -> None:
        self.calls.append(("start", []))

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        assert not x.is_floating_point() or x.shape == (3, 8)
        assert x.is_floating_point() or int(x.max()) < IDS
        self.calls.append(("add", [i for i, y in enumerate(outputs) if y is not None]))
        for y in outputs:
            if y is not None:
                y += 10


@dataclass(frozen=True)
class Plan:
    """Doubles the input or adds 1 to the output, as asked. sources: modules whose input it reads."""

    doubles: bool = False
    sources: tuple[str, ...] = ()
    width: int = 0

    @property
    def stages(self) -> dict[int, None]:
        return {0: None} if self.doubles else {3: None}  # by the number of what is changed: the input, or the output

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if self.doubles else x

    def after(
        self, x: torch.Tensor, y: torch.Tensor, module: Callable[..., torch.Tensor], inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        added = sum((inputs[name].sum() for name in self.sources), start=torch.tensor(0.0 if self.doubles else 1.0))
        y = nn.functional.pad(y, (0, self.width - y.shape[-1])) if self.width > y.shape[-1] else y
        return y.add_(added)  # in place, as of a plan that keeps the width


@dataclass(frozen=True)
class Setting:
    siblings: Siblings
    bypasses: Bypasses
    linears: dict[str, nn.Linear]
    x: torch.Tensor
    streams: dict[str, torch.Tensor]

    def base(self, name: str) -> torch.Tensor:
        return self.linears[name](self.x)


@pytest.fixture
def setting() -> Setting:
    linears = {name: nn.Linear(8, width).requires_grad_(False) for name, width in WIDTHS.items()}
    bypasses, streams = Bypasses(), dict[str, torch.Tensor]()
    members = [WrappedModule(name, linear, linear.forward, WIDTHS[name]) for name, linear in linears.items()]
    backend: Any = bypasses
    return Setting(Siblings(backend, 0, members, streams, 8), bypasses, linears, torch.randn(1, 3, 8), streams)


def fuse(setting: Setting, rows: int | None) -> None:
    fused = nn.Linear(8, sum(WIDTHS.values())).requires_grad_(False)
    fused.weight.copy_(torch.cat([linear.weight for linear in setting.linears.values()]))
    fused.bias.copy_(torch.cat([linear.bias for linear in setting.linears.values()]))
    setting.siblings.fused, setting.siblings.fused_rows = fused, rows


@pytest.mark.parametrize("fused", [False, True])
def test_the_first_call_runs_all_and_each_output_is_handed_out_once(setting: Setting, fused: bool) -> None:
    if fused:
        fuse(setting, None)
    q, k = (setting.siblings.output(setting.x, position, True) for position in (0, 1))
    assert torch.allclose(q, setting.base("q") + 10, atol=1e-5)
    assert torch.allclose(k, setting.base("k") + 10, atol=1e-5)
    assert setting.bypasses.calls == [("start", []), ("add", [0, 1])]
    q.zero_()
    again = setting.siblings.output(setting.x, 0, True)
    assert torch.allclose(again, setting.base("q") + 10, atol=1e-5)
    assert setting.bypasses.calls[2:] == [("add", [0])]


def test_without_adapters_nothing_is_added(setting: Setting) -> None:
    assert torch.equal(setting.siblings.output(setting.x, 1, False), setting.base("k"))
    assert not setting.bypasses.calls


def test_one_product_is_for_as_many_rows_as_it_is_faster_for(setting: Setting) -> None:
    assert not setting.siblings.fuses(setting.x)
    for rows, fuses in ((None, True), (3, True), (2, False)):
        fuse(setting, rows)
        assert setting.siblings.fuses(setting.x) == fuses


def test_a_changed_input_is_for_its_own_module_only(setting: Setting) -> None:
    fuse(setting, None)
    plan: Any = Plan(doubles=True)
    setting.siblings.plans["k"] = plan
    q, k = (setting.siblings.output(setting.x, position, True) for position in (0, 1))
    assert torch.allclose(q, setting.base("q") + 10, atol=1e-5)
    assert torch.allclose(k, setting.linears["k"](2 * setting.x) + 10, atol=1e-5)
    assert setting.bypasses.calls == [("add", [0, 1])], "nothing starts beside products that plans change"


def test_who_reads_another_modules_input_waits_for_it(setting: Setting) -> None:
    plan: Any = Plan(sources=("norm",))
    setting.siblings.plans["k"] = plan
    q = setting.siblings.output(setting.x, 0, True)
    setting.streams["norm"] = torch.full((3, 2), 0.5)
    k = setting.siblings.output(setting.x, 1, True)
    assert torch.allclose(q, setting.base("q") + 10, atol=1e-5)
    assert torch.allclose(k, setting.base("k") + 1 + 3 + 10, atol=1e-5)
    assert setting.bypasses.calls == [("add", [0]), ("add", [1])]


def test_what_spare_columns_give_is_not_added_again(setting: Setting) -> None:
    def product(group: int, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        assert torch.equal(bias, setting.siblings.fused.bias)  # type: ignore[union-attr]
        return torch.cat([setting.base(name) + 10 for name in WIDTHS], -1)

    fuse(setting, 0)
    columns: Any = SimpleNamespace(active=True, whole=True, product=product)
    setting.siblings.columns = columns
    wide = torch.cat([setting.x, torch.zeros(1, 3, 2)], -1)
    whole = setting.siblings.whole(wide, True)
    assert torch.allclose(whole, torch.cat([setting.base(name) + 10 for name in WIDTHS], -1))
    assert torch.allclose(setting.siblings.output(setting.x, 0, True), setting.base("q") + 10)
    assert not setting.bypasses.calls
    columns.whole = False
    setting.siblings.forget()
    assert torch.allclose(setting.siblings.output(setting.x, 0, True), setting.base("q") + 20)


def test_a_compiled_model_gets_all_outputs_side_by_side(setting: Setting) -> None:
    """With fused linears, without, and with a plan; its one call stands for all modules."""
    wanted = torch.cat([setting.base(name) + 10 for name in WIDTHS], -1)
    assert torch.allclose(setting.siblings.whole(setting.x, True), wanted, atol=1e-5)
    fuse(setting, None)
    assert torch.allclose(setting.siblings.whole(setting.x, True), wanted, atol=1e-5)
    plan: Any = Plan()
    setting.siblings.plans["k"] = plan
    wanted[..., WIDTHS["q"] :] += 1
    assert torch.allclose(setting.siblings.whole(setting.x, True), wanted, atol=1e-5)
    assert setting.siblings.keeps_widths
    assert setting.siblings.like_whole(setting.x).shape == wanted.shape
    asked: list[torch.Tensor] = []
    call = Call("q", lambda _, x: asked.append(x) or wanted, lambda _, x: wanted)
    outputs = [setting.siblings.called_out(setting.x, position, call) for position in (0, 1)]
    assert torch.equal(torch.cat(outputs, -1), wanted)
    assert len(asked) == 1
    setting.siblings.called_out(setting.x, 1, call)
    assert len(asked) == 2


def test_ids_of_a_larger_vocabulary_get_nothing_of_the_base_or_of_bypasses() -> None:
    embedding = nn.Embedding(IDS, 6).requires_grad_(False)
    bypasses: Any = Bypasses()
    siblings = Siblings(bypasses, 0, [WrappedModule("embed", embedding, embedding.forward, 6)], {}, IDS)
    plan: Any = Plan(width=8)
    siblings.plans["embed"] = plan
    assert not siblings.keeps_widths
    ids = torch.tensor([[1, IDS, 4]])
    found = siblings.output(ids, 0, True)
    assert found.shape == (1, 3, 8)
    assert torch.allclose(found[0, [0, 2], :6], embedding(ids[0, [0, 2]]) + 1 + 10)
    assert torch.equal(found[0, 1], torch.ones(8))
    siblings.forget()
    assert torch.equal(siblings.output(torch.tensor([[1]]), 0, False), embedding(torch.tensor([[1]])))
