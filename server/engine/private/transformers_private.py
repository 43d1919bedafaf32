"""transformers' private parts, and helpers of modules that it does not document, that the engine uses."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

__all__ = [
    "ALL_EXPERTS_FUNCTIONS",
    "Conv1D",
    "cached_path",
    "class_in",
    "eager_experts",
    "experts_implementation",
    "find_adapter_config_file",
    "gate",
    "has_post_norm",
    "ignore_tensors_of",
    "is_experts",
    "is_stateful",
    "multimodal_mapping",
    "set_experts_implementation",
]

_NO_EXPERTS = (
    "Without it no module is a site of experts: adapters inside mixtures of experts are refused, all others served."
)
_MIXTRAL = "transformers.models.mixtral.modeling_mixtral.MixtralExperts"
_MADE = f"{_MIXTRAL}(transformers.MixtralConfig(num_local_experts=1, hidden_size=1, intermediate_size=1))"

NAMES: Mapping[str, str] = {
    "transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS.register": (
        "transformers computes mixtures of experts with whatever is registered here under the configured name. "
        "Instead: wrapping the forward of each module of experts, as the hooks wrap linears."
    ),
    "transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS.get_interface": (
        "What transformers itself would run, in steps without adapters inside the experts. Instead: wrapping the "
        "forward of each module of experts, as the hooks wrap linears."
    ),
    "hasattr(transformers.PreTrainedConfig(), '_experts_implementation')": (
        "The configured name; set on the configuration of each module of experts, which need not be the model's. "
        "Instead: PreTrainedModel.set_experts_implementation, which checks the source of the model's class first."
    ),
    f"{_MIXTRAL}.forward.__wrapped__": (
        "What the decorator of experts wraps: the model's own way, and the sign of a module that has the interface. "
        + _NO_EXPERTS
    ),
    f"{_MIXTRAL}._apply_gate": (
        "The gate between the two products of an expert, which some models define otherwise. " + _NO_EXPERTS
    ),
    f"all(hasattr({_MADE}, name) for name in ('has_gate', 'has_bias', 'is_transposed', 'num_experts'))": (
        "How the weights of a module of experts are stacked. " + _NO_EXPERTS
    ),
    "hasattr(transformers.PreTrainedModel, '_is_stateful')": (
        "Whether a model remembers more of a text than keys and values; where transformers' cache has no room for it, "
        "the model is refused with this reason. Instead: the check at start, which refuses it for its logits."
    ),
    "transformers.pytorch_utils.Conv1D": (
        "GPT-2's linear, whose weight is transposed. Instead: a module with `nx` and `nf`."
    ),
    "'_raise_exceptions_for_missing_entries' in inspect.signature(transformers.utils.hub.cached_files).parameters": (
        "Finds a file of a model in the hub's cache, or none. Instead: huggingface_hub.try_to_load_from_cache, with "
        "transformers' folder for the cache."
    ),
    "transformers.utils.hub.cached_file": (
        "Finds a file of a model in the hub's cache, or none. Instead: huggingface_hub.try_to_load_from_cache, with "
        "transformers' folder for the cache."
    ),
    "transformers.utils.peft_utils.find_adapter_config_file": (
        "Whether an adapter lies in the folder that is named as a base: transformers would load both. Instead: "
        "cached_file with the name adapter_config.json."
    ),
    "hasattr(transformers.PreTrainedModel, '_keys_to_ignore_on_load_unexpected')": (
        "Keeps tensors of what is not loaded out of transformers' warning of tensors that it does not know. Instead: "
        "the warning, with thousands of lines."
    ),
    "hasattr(transformers.AutoModelForMultimodalLM, '_model_mapping')": (
        "Which class a multimodal checkpoint has, where that takes other inputs than images. Instead: the architecture "
        "that its configuration names."
    ),
}
OPTIONAL: Mapping[str, str] = {
    f"hasattr({_MADE}, '_is_expert_parallel')": (
        "Whether experts are divided among devices, which is not served. Without it a module is taken for a whole one, "
        "and its logits are checked at start."
    ),
    f"hasattr({_MADE}, 'has_post_expert_norm')": (
        "Whether there is a norm behind each expert. Versions without the name have no models with such a norm."
    ),
}

_FACTS = ("has_gate", "has_bias", "is_transposed", "num_experts")


def is_experts(module: nn.Module) -> bool:
    """Return whether transformers computes the module through its interface for experts, and whole on this device."""
    wrapped = hasattr(type(module).forward, "__wrapped__") and hasattr(module, "_apply_gate")
    parallel = getattr(module, "_is_expert_parallel", False)
    return wrapped and all(hasattr(module, fact) for fact in _FACTS) and not parallel


def eager_experts(module: nn.Module) -> Callable[..., Any]:
    """Return the model's own forward of such a module, without transformers' choice of an implementation."""
    eager: Callable[..., Any] = type(module).forward.__wrapped__  # type: ignore[attr-defined]
    return eager


def gate(module: nn.Module, up: torch.Tensor) -> torch.Tensor:
    """Apply an expert's gate. up: (pairs, 2 * width), or as the model has it. Returns (pairs, width)."""
    return cast(torch.Tensor, cast(Any, module)._apply_gate(up))


def has_post_norm(module: nn.Module) -> bool:
    """Return whether such a module has a `post_expert_norm` behind each expert."""
    return bool(getattr(module, "has_post_expert_norm", False))


def is_stateful(model: PreTrainedModel) -> bool:
    """Return whether a model keeps more of a sequence than keys and values."""
    return bool(model._is_stateful)


def experts_implementation(config: PreTrainedConfig) -> str | None:
    """Return the name under which modules with this configuration look up their implementation."""
    name: str | None = config._experts_implementation
    return name


def set_experts_implementation(config: PreTrainedConfig, name: str) -> None:
    """Let modules with this configuration, or one inside it, use what is registered as `name`."""
    config._experts_implementation = name


def cached_path(model: str, name: str) -> str | None:
    """Return where a file of a hub's model lies in the cache of this machine; None if it does not."""
    path: str | None = cached_file(model, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return path


def class_in(mapping: Any, config: PreTrainedConfig) -> Any:
    """Return the class that a mapping of transformers has for a configuration; None if it has none."""
    try:
        found = mapping[type(config)]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple | list) else found


def multimodal_mapping() -> Any:
    """Return transformers' mapping from configurations to classes that take any of several kinds of input."""
    return AutoModelForMultimodalLM._model_mapping


def ignore_tensors_of(model: PreTrainedModel, modules: Iterable[str]) -> None:
    """Let a model that is being loaded say nothing of tensors of these modules in its checkpoint."""
    known = set(model._keys_to_ignore_on_load_unexpected or ())
    model._keys_to_ignore_on_load_unexpected = known | {rf"^{re.escape(name)}\." for name in modules}
