"""The text part of a multimodal model: its own class, without the modules that no text passes.

The class stays transformers' own, so its names, rotations, masks and scales are too. While it is made, on the meta
device, its forward pass is run once on text, with a stand-in for the decoder: what lies beside the decoder and is not
called (towers, projectors) is left out before anything is read from the checkpoint.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.generic import ModelOutput

from ..private.transformers_private import class_in, ignore_tensors_of, multimodal_mapping

logger = logging.getLogger(__name__)

_SPARE = "_peftserve_spare"  # attribute of a model that is being loaded
_TOKENS = 5  # of the prompt that shows what text passes


class Unread(nn.Module):
    """Stands for a module that no text passes, and that is not loaded.

    names: of it and all below, in the model. decoder: beside which it lies, on the same device.
    """

    def __init__(self, names: frozenset[str], decoder: nn.Module) -> None:
        super().__init__()
        self.names = names
        self._decoder = (decoder,)  # inside a tuple it is no child

    @property
    def device(self) -> torch.device:
        return next(self._decoder[0].parameters()).device

    def forward(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{min(self.names, key=len)} is not loaded: text was not expected to pass there")


class Wrapped(NamedTuple):
    """A multimodal checkpoint. own: the class to load its text part with. config: what that class is made with."""

    own: type[PreTrainedModel]
    config: PreTrainedConfig


def wrapped_class(config: PreTrainedConfig, trust_remote_code: bool) -> Wrapped | None:
    """Return how a multimodal checkpoint's text part is loaded; None where transformers has a class for the text alone.

    Of a model that thinks and talks, the part that thinks answers in text (Qwen's Omni models).
    """
    if trust_remote_code and getattr(config, "auto_map", None):
        return None
    config = getattr(config, "thinker_config", config)
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, multimodal_mapping()):
        if (found := class_in(mapping, config)) is not None:
            text = config.get_text_config()
            is_wrapped = text is not config and found.config_class is not type(text)
            return Wrapped(found, config) if is_wrapped or mapping is not MODEL_FOR_CAUSAL_LM_MAPPING else None
    return None


def text_part(own: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a class that makes the models of `own` without what no text passes. `restore` gives them their class."""

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        own.__init__(self, config, *args, **kwargs)
        leave_out(self)

    made = type(own.__name__, (own,), {"__init__": __init__, "__module__": own.__module__})
    return cast(type[PreTrainedModel], made)


def restore(model: PreTrainedModel, own: type[PreTrainedModel]) -> None:
    """Give a model that was made by `text_part(own)` its own class, once it is loaded."""
    for name in spare_parameters(model):
        holder, _, last = name.rpartition(".")
        setattr(model.get_submodule(holder), last, None)
    vars(model).pop(_SPARE, None)
    model.__class__ = own


def spare_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of parameters that a model has until it is restored, and that a text does not need."""
    names: frozenset[str] = vars(model).get(_SPARE, frozenset())
    return names


def implementation_of_text(model: PreTrainedModel, name: str) -> str | dict[str, str]:
    """Return what to call `set_attn_implementation` with, for it to leave out what is not there."""
    if not unread_modules(model):
        return name
    there = {id(module.config) for module in model.modules() if isinstance(module, PreTrainedModel)}
    config = model.config
    return {"": name} | {part: name for part in config.sub_configs if id(getattr(config, part, None)) in there}


def unread_modules(model: nn.Module) -> frozenset[str]:
    """Return the names of all modules that were left out of a model."""
    return frozenset(name for module in model.modules() if isinstance(module, Unread) for name in module.names)


def leave_out(model: PreTrainedModel) -> None:
    """Replace what lies beside the decoder and no text passes: modules, and parameters of what the decoder is in."""
    names = {module: name for name, module in model.named_modules()}
    decoder = cast(PreTrainedModel, model.get_decoder())
    if decoder is model or decoder not in names:
        return
    holders = _holders(model, names[decoder])
    called = _called(model, decoder, holders) | {*holders, decoder}
    left_out = []
    beside = dict.fromkeys(child for holder in holders for child in holder.children())
    for module in beside:
        if called.isdisjoint(module.modules()) and module is not model.get_output_embeddings():
            name = names[module]
            below = frozenset(f"{name}.{inner}" if inner else name for inner, _ in module.named_modules())
            model.set_submodule(name, Unread(below, decoder))
            left_out.append(name)
    ignore_tensors_of(model, left_out)
    kept = dict(model.named_parameters(remove_duplicate=False))
    model.all_tied_weights_keys = {name: of for name, of in model.all_tied_weights_keys.items() if name in kept}


def _holders(model: nn.Module, decoder: str) -> list[nn.Module]:
    """Return the model and the modules in it that the decoder lies in."""
    parts = decoder.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def _called(model: PreTrainedModel, decoder: PreTrainedModel, holders: list[nn.Module]) -> set[nn.Module]:
    """Return the modules that the model calls for a text, and note which parameters of the holders it can do without.

    Without numbers some classes cannot ask whether positions begin anew; without positions they do not ask.
    """
    called: set[nn.Module] = set()
    training = model.training
    model.eval()
    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(lambda module, _: called.add(module)).remove)
        hooks.enter_context(_stand_in(decoder))
        if _runs(model, with_positions=True) or _runs(model, with_positions=False):
            vars(model)[_SPARE] = _spare(model, holders)
    model.train(training)
    return called


def _spare(model: PreTrainedModel, holders: list[nn.Module]) -> frozenset[str]:
    """Return the names of the holders' own parameters if the model runs without, such as the row that ends a line."""
    own = [(holder, name, value) for holder in holders for name, value in holder.named_parameters(recurse=False)]
    names = frozenset(name for name, value in model.named_parameters() if any(value is one for *_, one in own))
    for holder, name, _ in own:
        setattr(holder, name, None)
    try:
        return names if own and _runs(model, with_positions=False) else frozenset()
    finally:
        for holder, name, value in own:
            setattr(holder, name, value)


def _runs(model: PreTrainedModel, *, with_positions: bool) -> bool:
    """Run a text. Returns whether that was possible."""
    ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device=model.device)
    positions = {"position_ids": torch.arange(_TOKENS, device=model.device)[None]} if with_positions else {}
    try:
        model(input_ids=ids, use_cache=False, **positions)
    except Exception as error:  # of whatever a class does that tensors without numbers cannot
        logger.debug("%s on text without numbers: %s", type(model).__name__, error)
        return False
    return True


@dataclass
class _Answer(ModelOutput):
    """What a decoder gives, with None for whatever else its class would give."""

    last_hidden_state: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _stand_in(decoder: PreTrainedModel) -> Iterator[None]:
    """Let the decoder answer with tensors of the right shapes, whatever it is called with."""
    head = decoder.get_output_embeddings()
    width = decoder.config.get_text_config().hidden_size

    def forward(*_: Any, **__: Any) -> Any:
        states = torch.zeros(1, _TOKENS, width, device=decoder.device, dtype=decoder.dtype)
        return _Answer(last_hidden_state=states) if head is None else _Answer(logits=head(states))

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
