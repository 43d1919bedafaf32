"""Where in a model its hidden states can be read: behind the whole decoder, and behind each of its layers.

Hooks are on the model only in steps that read something: they cost a call of Python, and no compiled step runs them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Reader = Callable[[torch.Tensor], None]
"""Takes the hidden states of a step, (rows, width), which the model may overwrite when it returns."""


class HiddenStates:
    """The modules whose outputs are hidden states.

    final: gives what the head reads, behind the last norm; None where it is not known. layers: the decoder's layers in
    their order; empty where they are not known. width: of the final ones; 0 where they are not known.

    is_read: whether a step is running that reads some.
    """

    def __init__(self, final: nn.Module | None = None, layers: Sequence[nn.Module] = (), width: int = 0) -> None:
        self.width = width
        self.is_read = False
        self._final = final
        self._layers = tuple(layers)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def check(self, layer: int | None) -> None:
        """Raise ValueError if there is no such layer, or its output cannot be read in this model."""
        if layer is None and self._final is None:
            raise ValueError("the last hidden states of this model cannot be read")
        if layer is not None and not self._layers:
            raise ValueError("the layers of this model are not known; only its last hidden states are, without a layer")
        if layer is not None and not (isinstance(layer, int) and -self.num_layers <= layer < self.num_layers):
            raise ValueError(
                f"there is no layer {layer}: the model has {self.num_layers}, which are 0 to {self.num_layers - 1} or "
                f"-{self.num_layers} to -1"
            )

    @contextmanager
    def read(self, readers: Mapping[int | None, Reader]) -> Iterator[None]:
        """Call each reader with the output of its layer, or of the whole decoder for None, when the model runs."""
        if not readers:
            yield
            return
        with ExitStack() as hooks:
            for layer, reader in readers.items():
                hooks.callback(self._module(layer).register_forward_hook(_reading(reader)).remove)
            self.is_read = True
            try:
                yield
            finally:
                self.is_read = False

    def _module(self, layer: int | None) -> nn.Module:
        module = self._final if layer is None else self._layers[layer]
        assert module is not None, "read what cannot be read"
        return module


class HiddenStatesTracer:
    """Finds a model's hidden states in one forward pass over `num_tokens` tokens; used as a context around it.

    The layers are the entries of the one list of as many modules as the configuration has layers. What is not called
    just once with all tokens is no place to read at.
    """

    def __init__(self, model: PreTrainedModel, num_tokens: int) -> None:
        decoder = model.get_decoder()
        self._decoder: nn.Module | None = None if decoder is model else decoder
        self._layers = _layers_of(decoder, model.config.get_text_config().num_hidden_layers)
        self._num_tokens = num_tokens
        self._widths: dict[nn.Module, list[int]] = {}  # of the outputs of each call; 0 of an unknown shape
        self._hooks = ExitStack()

    def __enter__(self) -> "HiddenStatesTracer":
        for module in {*self._layers, *([] if self._decoder is None else [self._decoder])}:
            self._hooks.callback(module.register_forward_hook(self._record).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def result(self) -> HiddenStates:
        """Return what can be read, after the pass."""
        final = None if self._decoder is None or not self._is_read_once(self._decoder) else self._decoder
        layers = self._layers if all(map(self._is_read_once, self._layers)) else []
        return HiddenStates(final, layers, 0 if final is None else self._widths[final][0])

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = _states(output)
        is_whole = states is not None and states.shape[:-1].numel() == self._num_tokens
        self._widths.setdefault(module, []).append(states.shape[-1] if states is not None and is_whole else 0)

    def _is_read_once(self, module: nn.Module) -> bool:
        widths = self._widths.get(module, [])
        return len(widths) == 1 and widths[0] > 0


def _layers_of(decoder: nn.Module, count: int) -> list[nn.Module]:
    """Return the entries of the decoder's only list of `count` different modules; none if there is not just one."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    nested = {inner for outer in lists for inner in outer.modules() if inner is not outer}
    found = [[*entries] for entries in lists if entries not in nested and len({*entries}) == len(entries) == count]
    return found[0] if len(found) == 1 else []


def _reading(reader: Reader) -> Callable[..., None]:
    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = _states(output)
        assert states is not None, "a module gives other outputs than when it was traced"
        reader(states.flatten(0, -2))

    return read


def _states(output: Any) -> torch.Tensor | None:
    """Return the hidden states of a module's output: the output itself, or the first of several."""
    first = output if isinstance(output, torch.Tensor) else output[0]
    return first if isinstance(first, torch.Tensor) and first.is_floating_point() and first.dim() > 1 else None
