"""A model without its weights: its modules as transformers defines them, on the meta device."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel

from ..engine.model.text_part import leave_out, wrapped_class
from .errors import MergeRefused
from .private.transformers_private import real_buffers

COMPUTED = torch.float32
"""The type in which everything is folded, whatever type is read and written."""


def skeleton(config: PreTrainedConfig, trust_remote_code: bool = False, *, text_alone: bool = False) -> PreTrainedModel:
    """Return a model of this configuration with nothing but the buffers that no checkpoint has.

    text_alone: without those modules of a multimodal model that are not served. Raises MergeRefused if there is no such
    model.
    """
    wrapped = wrapped_class(config, trust_remote_code)
    auto: Any = AutoModelForCausalLM if wrapped is None else AutoModelForMultimodalLM
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(
                copy.deepcopy(config),
                dtype=COMPUTED,
                attn_implementation="eager",
                trust_remote_code=trust_remote_code,
            )
    except (ValueError, ImportError, NotImplementedError) as error:
        raise MergeRefused(f"transformers makes no model of this configuration: {error}") from None
    if wrapped is not None and text_alone:
        leave_out(model)
    real_buffers(model)
    model.eval().requires_grad_(False)
    return model


def changed(config: PreTrainedConfig, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a copy of a configuration in which fields of the language model are others."""
    other = copy.deepcopy(config)
    for part in {id(part): part for part in (other, other.get_text_config())}.values():
        for name, value in fields.items():
            if part is other.get_text_config() or hasattr(part, name):
                setattr(part, name, value)
    return other
