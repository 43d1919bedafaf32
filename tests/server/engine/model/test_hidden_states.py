"""Hidden states are read at the layers, which are found by structure, and only while they are asked for."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.hidden_states import HiddenStates, HiddenStatesTracer

TOKENS, WIDTH = 5, 4


class Decoder(nn.Module):
    """Layers one behind the other. twice: whether the first is called twice. extra: another list of as many modules."""

    def __init__(self, layers: int, *, twice: bool = False, extra: bool = False, in_tuple: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.experts = nn.ModuleList(nn.Identity() for _ in range(layers if extra else 7))
        self.twice, self.in_tuple = twice, in_tuple

    def forward(self, x: torch.Tensor) -> Any:
        for layer in [self.layers[0], *self.layers] if self.twice else self.layers:
            x = layer(x)
        return (x, "more") if self.in_tuple else SimpleOutput(x)


class SimpleOutput:
    """Is read by place, as a ModelOutput is."""

    def __init__(self, first: torch.Tensor) -> None:
        self.first = first

    def __getitem__(self, place: int) -> torch.Tensor:
        return [self.first][place]


class Model(nn.Module):
    def __init__(self, decoder: nn.Module | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=3))

    def get_decoder(self) -> nn.Module:
        return self if self.decoder is None else self.decoder

    def forward(self, x: torch.Tensor) -> Any:
        return self.decoder(x) if self.decoder is not None else x


def traced(decoder: nn.Module | None, rows: int = TOKENS) -> HiddenStates:
    model = Model(decoder)
    with HiddenStatesTracer(model, TOKENS) as tracer:  # type: ignore[arg-type]
        model(torch.randn(1, rows, WIDTH))
    assert not any(module._forward_hooks for module in model.modules())
    return tracer.result()


@pytest.mark.parametrize(
    ("decoder", "num_layers", "width"),
    [
        (Decoder(3), 3, WIDTH),
        (Decoder(3, in_tuple=True), 3, WIDTH),
        (Decoder(2), 0, WIDTH),
        (Decoder(3, twice=True), 0, WIDTH),
        (Decoder(3, extra=True), 0, WIDTH),
        (None, 0, 0),
    ],
)
def test_layers_are_those_that_are_called_once_with_all_tokens(
    decoder: nn.Module | None, num_layers: int, width: int
) -> None:
    hidden = traced(decoder)
    assert (hidden.num_layers, hidden.width) == (num_layers, width)


def test_what_sees_other_rows_than_the_steps_is_not_read() -> None:
    hidden = traced(Decoder(3), rows=TOKENS + 1)
    assert (hidden.num_layers, hidden.width) == (0, 0)


def test_what_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the last hidden states of this model cannot be read"):
        traced(None).check(None)
    with pytest.raises(ValueError, match="the layers of this model are not known"):
        traced(Decoder(2)).check(0)
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f"no layer {layer}: the model has 3"):
            traced(Decoder(3)).check(layer)
    for layer in (None, 0, 2, -1, -3):
        traced(Decoder(3)).check(layer)


def test_outputs_are_read_while_they_are_asked_for() -> None:
    decoder = Decoder(3)
    hidden = traced(decoder)
    seen: dict[Any, torch.Tensor] = {}
    x = torch.randn(1, TOKENS, WIDTH)
    with hidden.read({layer: lambda states, at=layer: seen.update({at: states}) for layer in (None, 0, -1)}):
        assert hidden.is_read
        final = decoder(x)[0]
    assert not hidden.is_read
    torch.testing.assert_close(seen[0], decoder.layers[0](x)[0])
    torch.testing.assert_close(seen[-1], final[0])
    torch.testing.assert_close(seen[None], final[0])
    seen.clear()
    with hidden.read({}):
        decoder(x)
    assert not seen
    with pytest.raises(RuntimeError), hidden.read({0: lambda _: None}):
        raise RuntimeError
    assert not hidden.is_read
    assert not any(module._forward_hooks for module in decoder.modules())
