"""Read the base from its folder or repository: the whole base, and nothing but the base.

transformers draws at random what a checkpoint lacks, and puts an adapter that lies beside it into the model. The first
is refused here, the second prevented. Knows nothing of attention and sites.
"""

import json
import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from peftserve.adapters.peft.listing import listed
from peftserve.adapters.peft.plain import is_plain

from ...model_files import ModelFiles, model_files
from ..private.transformers_private import find_adapter_config_file
from .errors import UnservableModel, reason_of
from .quantisation import GGUF, method_of
from .text_part import restore, spare_parameters, text_part, wrapped_class

logger = logging.getLogger(__name__)

_NOWHERE = {"subfolder": "no-adapter-of-this-base"}  # where transformers is to look for an adapter, and finds none
_NO_MODEL = (OSError, ValueError, ImportError)  # without files, of an unknown kind, of a kind that needs a package
# Of names beside a weight: what its codes are multiplied or shifted by.
_OF_CODES = re.compile(r"\.[^.]*(scale|absmax|SCB|zero|quant)[^.]*$")
_UNREADABLE = (SafetensorError, RuntimeError, EOFError)


def read_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    """Read a model's configuration. name: as `model_files` takes it. Raises UnservableModel if there is no model."""
    files = model_files(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            files.place, **files.told, trust_remote_code=trust_remote_code
        )
    except _NO_MODEL as error:
        _refuse_adapter(files.place)
        _refuse_without_reader(files, error)
        raise UnservableModel(f"transformers finds no model in {name}: {reason_of(error)}") from error
    except Exception as error:  # of whatever the values in it lead to
        raise UnservableModel(f"the configuration in {name} cannot be read: {reason_of(error)}") from error
    return config


def read_model(
    name: str, dtype: torch.dtype, trust_remote_code: bool, quantisation: Mapping[str, Any] = MappingProxyType({})
) -> PreTrainedModel:
    """Load a model, every weight of it from its checkpoint.

    quantisation: what transformers is told of it (`quantisation.py`).
    Raises UnservableModel if there is no model, or if weights are missing, misshapen or unreadable; OutOfMemoryError.
    """
    files, config = model_files(name), read_config(name, trust_remote_code)
    wrapped = wrapped_class(config, trust_remote_code)
    loader: Any = AutoModelForCausalLM if wrapped is None else text_part(wrapped.own)
    own = {} if wrapped is None else {"config": wrapped.config}
    try:
        loaded: Any = loader.from_pretrained(
            files.place,
            **files.told,
            **own,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",
            adapter_kwargs=dict(_NOWHERE),
            ignore_mismatched_sizes=True,  # so that they are told, and not raised without a name
            output_loading_info=True,
            **quantisation,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _refusal(error, name, config, bool(quantisation)) from error
    model: PreTrainedModel = loaded[0]
    _check_bare(model, files.place)
    _check_whole(model, loaded[1], name)
    if (method := method_of(config)) in ("", GGUF):
        _check_plain(model, loaded[1], name)
    else:
        _check_joined(model, loaded[1], name, method)
    if wrapped is not None:
        restore(model, wrapped.own)
    if files.gguf is not None:
        _forget_ends(model)
    if "quantization_config" in quantisation:
        _let_go_of_files(model)
    return model


def _refusal(error: Exception, name: str, config: PreTrainedConfig, is_quantised: bool) -> UnservableModel:
    """Return why a model could not be loaded, in words, for whatever transformers, a package or its code raised.

    Raises UnservableModel where more is known of it than that.
    """
    if is_quantised and not isinstance(error, SafetensorError):
        what = f"quantised by {method}, " if (method := method_of(config)) else ""
        return UnservableModel(f"the weights in {name}, {what}cannot be loaded here: {reason_of(error)}")
    if isinstance(error, _UNREADABLE):
        return UnservableModel(f"the weights in {name} cannot be read: {reason_of(error)}")
    if isinstance(error, _NO_MODEL):
        _refuse_adapter(model_files(name).place)
        _refuse_kind(config)
        return UnservableModel(f"transformers finds no model in {name}: {reason_of(error)}")
    return UnservableModel(f"the model in {name} cannot be made: {reason_of(error)}")


def _let_go_of_files(model: PreTrainedModel) -> None:
    """Copy what was not quantised: as views of the mapped checkpoint, these keep all pages of it that were read."""
    for tensor in (*model.parameters(), *model.buffers()):
        if is_plain(tensor) and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _forget_ends(model: PreTrainedModel) -> None:
    """Take the id that ends a sequence from the configurations: a GGUF file states it with its tokenizer.

    transformers fills in what its class of configuration has by default, which is one checkpoint's.
    """
    for config in (model.config, model.generation_config):
        config.eos_token_id = None


def _check_whole(model: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """Raise UnservableModel unless the checkpoint has all of the model. Warns of tensors that the model does not have.

    info: transformers' account of the loading, without tied weights and what its own classes compute.
    """
    unknown, spare = sorted(info["unexpected_keys"]), spare_parameters(model)
    if wrong := sorted(mismatch for mismatch in info["mismatched_keys"] if mismatch[0] not in spare):
        shapes = [f"{key} {tuple(stored)}, where its configuration says {tuple(own)}" for key, stored, own in wrong]
        raise UnservableModel(f"tensors in {name} have other shapes than its configuration says: {listed(shapes)}")
    if missing := info["missing_keys"] - spare:
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


def _check_plain(model: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """Raise UnservableModel if a checkpoint that is loaded as plain numbers has scales of codes beside weights.

    transformers takes what lies under a weight's name for the weight, whatever its type.
    """
    own = {path for path, module in model.named_modules() if "weight" in vars(module).get("_parameters", {})}
    if scales := [key for key in _unread_scales(info) if key.rpartition(".")[0] in own]:
        raise UnservableModel(
            f"the checkpoint in {name} holds scales of quantised weights ({listed(scales)}), and its config.json has "
            "no quantization_config that says how to read them"
        )


def _check_joined(model: PreTrainedModel, info: Mapping[str, Any], name: str, method: str) -> None:
    """Raise UnservableModel if a quantised checkpoint has scales below modules with matrices of plain numbers.

    That is where transformers joins the codes of experts as if they were the weights, for a method that it has no
    experts of.
    """
    joined = [
        f"{path}."
        for path, module in model.named_modules()
        if any(matrix.dim() > 2 and is_plain(matrix) for matrix in module.parameters(recurse=False))
    ]
    if scales := [key for key in _unread_scales(info) if key.startswith(tuple(joined))]:
        raise UnservableModel(
            f"the checkpoint in {name} holds scales of quantised experts ({listed(scales)}), which transformers does "
            f"not read for a {type(model).__name__} quantised by {method}"
        )


def _unread_scales(info: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(info["unexpected_keys"]) if _OF_CODES.search(key)]


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


def _refuse_without_reader(files: ModelFiles, error: BaseException) -> None:
    """Raise UnservableModel that names the package by which transformers reads GGUF files, if that is missing."""
    if files.gguf is not None and isinstance(error, ImportError):
        raise UnservableModel("a GGUF file of this architecture needs gguf: pip install gguf") from error


def _refuse_kind(config: PreTrainedConfig) -> None:
    """Raise UnservableModel if transformers has no causal language model of this type."""
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not getattr(config, "auto_map", None):
        raise UnservableModel(f"it is of type {config.model_type}, of which transformers has no causal language model")


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
