"""Read the base from its folder or repository: the whole base, and nothing but the base.

transformers draws at random what a checkpoint lacks, and puts an adapter that lies beside it into the model. The first
is refused here, the second prevented. Knows nothing of attention and sites.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from peftserve.adapters.peft.listing import listed

from ..private.transformers_private import find_adapter_config_file
from .errors import UnservableModel

logger = logging.getLogger(__name__)

_NOWHERE = {"subfolder": "no-adapter-of-this-base"}  # where transformers is to look for an adapter, and finds none
_NO_MODEL = (OSError, ValueError, ImportError)  # without files, of an unknown kind, of a kind that needs a package
_UNREADABLE = (SafetensorError, RuntimeError, EOFError)


def read_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    """Read a model's configuration. name: a folder or a hub's id. Raises UnservableModel if there is no model."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except _NO_MODEL as error:
        _refuse_adapter(name)
        raise UnservableModel(f"transformers finds no model in {name}: {error}") from error
    return config


def read_model(name: str, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """Load a model, every weight of it from its checkpoint.

    Raises UnservableModel if there is no model, or if weights are missing, misshapen or unreadable; OutOfMemoryError.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",
            adapter_kwargs=dict(_NOWHERE),
            ignore_mismatched_sizes=True,  # so that they are told, and not raised without a name
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        raise UnservableModel(f"the weights in {name} cannot be read: {error}") from error
    except _NO_MODEL as error:
        _refuse_adapter(name)
        raise UnservableModel(f"transformers finds no model in {name}: {error}") from error
    model: PreTrainedModel = loaded[0]
    _check_bare(model, name)
    _check_whole(model, loaded[1], name)
    return model


def _check_whole(model: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """Raise UnservableModel unless the checkpoint has all of the model. Warns of tensors that the model does not have.

    info: transformers' account of the loading, without tied weights and what its own classes compute.
    """
    unknown = sorted(info["unexpected_keys"])
    if wrong := sorted(info["mismatched_keys"]):
        shapes = [f"{key} {tuple(stored)}, where its configuration says {tuple(own)}" for key, stored, own in wrong]
        raise UnservableModel(f"tensors in {name} have other shapes than its configuration says: {listed(shapes)}")
    if missing := info["missing_keys"]:
        tensors = list(model.state_dict(keep_vars=True))
        lacking = [key for key in tensors if key in missing] or sorted(missing)
        instead = f", and has others that this architecture does not know: {listed(unknown)}" if unknown else ""
        raise UnservableModel(
            f"the checkpoint in {name} lacks {len(lacking)} of the {len(tensors)} tensors of a {type(model).__name__}: "
            f"{listed(lacking)}{instead}. Serve a whole causal language model, as save_pretrained writes it"
        )
    if info["error_msgs"]:
        raise UnservableModel(f"the weights in {name} cannot be read: {listed(info['error_msgs'])}")
    if unknown:
        logger.warning(
            "tensors in %s that a %s does not have are left out: %s", name, type(model).__name__, listed(unknown)
        )


def _check_bare(model: PreTrainedModel, name: str) -> None:
    """Warn of an adapter that lies beside the base. Raises UnservableModel if transformers has put it into the base."""
    if found := sorted({type(module).__name__ for module in model.modules() if _is_of_peft(module)}):
        raise UnservableModel(f"transformers has put an adapter that lies in {name} into it ({listed(found)})")
    if _adapter_config(name) is not None:
        logger.warning(
            "There is an adapter in %s, too. The base is served without it; to serve it beside the base, start with "
            "--adapter NAME=FOLDER, where FOLDER has its adapter_config.json and adapter_model.safetensors",
            name,
        )


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def _refuse_adapter(name: str) -> None:
    """Raise UnservableModel if what has been named as a base is an adapter."""
    if (config := _adapter_config(name)) is None:
        return
    base = config.get("base_model_name_or_path")
    raise UnservableModel(
        f"{name} holds an adapter and no model. Start with the adapter's base and name the adapter beside it: "
        f"peftserve serve {base if isinstance(base, str) and base else 'BASE'} --adapter NAME={name}"
    )


def _adapter_config(name: str) -> Mapping[str, Any] | None:
    """Read the configuration of an adapter in a folder or repository: None without one, empty if it is unreadable."""
    try:
        path = find_adapter_config_file(name)
    except (OSError, ValueError):
        return None
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        config = {}
    return config if isinstance(config, dict) else {}
