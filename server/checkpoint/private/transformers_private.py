"""transformers' private parts by which a checkpoint is read and written tensor by tensor.

`from_pretrained` and `save_pretrained` hold a whole model. What they do to one tensor is below them: renaming,
splitting and stacking on the way in, and all of it in reverse on the way out.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, logging
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig, get_model_conversion_mapping  # type: ignore[attr-defined]

__all__ = [
    "Loaded",
    "conversions",
    "load",
    "named_in_model",
    "own_tensors",
    "real_buffers",
    "reverted",
    "tied_names",
    "without_progress",
]

_TENSORWISE = "Without it a merge would have to hold the whole model: from_pretrained, then save_pretrained."
_LLAMA = (
    "transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, "
    "num_hidden_layers=1, num_attention_heads=1))"
)

NAMES: Mapping[str, str] = {
    "transformers.modeling_utils.get_model_conversion_mapping": (
        "How the tensors of a checkpoint become those of the model. " + _TENSORWISE
    ),
    "transformers.core_model_loading.convert_and_load_state_dict_in_model": (
        "Loads some tensors of a checkpoint into a model, as from_pretrained does with all. " + _TENSORWISE
    ),
    "transformers.core_model_loading.rename_source_key": (
        "Under which name a tensor of a checkpoint is in the model: which of them are read together. " + _TENSORWISE
    ),
    "transformers.core_model_loading.revert_weight_conversion": (
        "Turns tensors of the model back into those of a checkpoint, as save_pretrained does with all. " + _TENSORWISE
    ),
    "(transformers.core_model_loading.WeightConverter, transformers.core_model_loading.WeightRenaming)": (
        "The two kinds of conversions, which `rename_source_key` takes apart. " + _TENSORWISE
    ),
    "transformers.modeling_utils.LoadStateDictConfig(device_map={'': 'meta'}, dtype=None, weight_mapping=[])": (
        "What `convert_and_load_state_dict_in_model` is told. " + _TENSORWISE
    ),
    f"hasattr({_LLAMA}, 'all_tied_weights_keys')": (
        "Which tensors the configuration ties to which. Instead: whether two parameters of a model are one object."
    ),
    f"hasattr({_LLAMA}, '_move_missing_keys_from_meta_to_device')": (
        "Gives a model without weights its real buffers, such as frequencies of rotations. Instead: making the model "
        "on the CPU, with all of its weights."
    ),
    f"hasattr({_LLAMA}, '_initialize_missing_keys')": "Fills these buffers. Instead: the same.",
    f"hasattr({_LLAMA}, '_adjust_missing_and_unexpected_keys')": (
        "Which tensors a model's class says may lack or be left over. Instead: naming them all to the user."
    ),
    f"hasattr({_LLAMA}, '_keys_to_ignore_on_save')": (
        "Which tensors save_pretrained leaves out. Instead: writing them too, which loads as well."
    ),
}


@dataclass(frozen=True)
class Loaded:
    """What came of loading tensors. names: parameters that were set. unexpected: tensors that the model has not.

    wrong: sentences on tensors that have other shapes, or cannot be converted.
    """

    names: frozenset[str]
    unexpected: frozenset[str]
    wrong: tuple[str, ...]


def conversions(model: PreTrainedModel) -> list[Any]:
    """Return the conversions of a model's checkpoints. `load` marks those that were of use, for `reverted`."""
    return list(get_model_conversion_mapping(model))


def named_in_model(key: str, model: PreTrainedModel, mapping: Collection[Any], own: dict[str, Any]) -> str:
    """Return under which of the model's names a checkpoint's tensor is loaded; of several, the first.

    own: the model's tensors by name.
    """
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    name: str = rename_source_key(key, renamings, converters, prefix, own)[0]
    if name not in own and key in own:
        name = rename_source_key(key, [], [], prefix, own)[0]
    return name


def load(
    model: PreTrainedModel, tensors: Mapping[str, Any], mapping: list[Any], device: str, dtype: torch.dtype
) -> Loaded:
    """Load tensors of a checkpoint into the model, whose other tensors stay. Each is read by `tensor[...]`."""
    config = LoadStateDictConfig(device_map={"": device}, dtype=dtype, weight_mapping=mapping)
    with without_progress():
        info, _ = convert_and_load_state_dict_in_model(model, dict(tensors), config)
    names = frozenset(model.state_dict()) - info.missing_keys
    model._adjust_missing_and_unexpected_keys(info)
    shapes = [f"{name} has the shape {tuple(there)}, not {tuple(own)}" for name, there, own in info.mismatched_keys]
    broken = [f"{name} cannot be converted" for name in info.conversion_errors]
    return Loaded(names, frozenset(info.unexpected_keys), (*sorted(shapes), *sorted(broken), *info.error_msgs))


def own_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that a checkpoint of the model has."""
    left_out = set(model._keys_to_ignore_on_save or ())
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in left_out}


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the names of parameters that are others', by the configuration: from each to that of the other."""
    return dict(model.all_tied_weights_keys)


def reverted(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of the model as its checkpoint has them. All that are made of one there must be given at once."""
    return dict(revert_weight_conversion(model, dict(tensors)))


def real_buffers(model: PreTrainedModel) -> None:
    """Give a model on the meta device its buffers that no checkpoint has, filled as its class does."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # so that nothing is drawn for it
    model._move_missing_keys_from_meta_to_device(set(), None, None, None)  # type: ignore[arg-type]
    _keep_persistent(model)
    model._initialize_missing_keys(False)


def _keep_persistent(model: nn.Module) -> None:
    """Put zeros where a buffer comes from the checkpoint, and mark it as filled."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                zeros = torch.zeros(buffer.shape, dtype=buffer.dtype)
                zeros._is_hf_initialized = True  # type: ignore[attr-defined]
                setattr(module, name, zeros)


@contextmanager
def without_progress() -> Iterator[None]:
    """Silence transformers' own bars, which would have one for each tensor."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
