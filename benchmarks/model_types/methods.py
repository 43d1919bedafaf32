"""The adapters that a trial makes: for each name a PEFT configuration for any model, by what its modules are."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_SECOND = re.compile(r".*(down|fc2|fc_out|lin2|wo|w2|4h_to_h|c_proj|output_linear|out_proj_mlp)\w*")
_VIRTUAL = 5
_QUIET = 0.1  # for what turns or multiplies weights
_TOKENS = [3, 9, 30, 41]


class Method(NamedTuple):
    """How to make an adapter. spread: of the noise that is added to what was trained."""

    config: Callable[[PreTrainedModel], peft.PeftConfig]
    spread: float = 0.2


def _lora(_: PreTrainedModel) -> peft.PeftConfig:
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")


def _dora(model: PreTrainedModel) -> peft.PeftConfig:
    """Configure DoRA on all linears; on those of attention alone in a mixture of experts, where PEFT has no other."""
    names = _linears(model)
    if any(parameter.dim() == 3 for parameter in model.parameters()):
        names = [name for name in names if "attn" in name or "attention" in name] or names
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=_matching(names), use_dora=True)


def _ia3(model: PreTrainedModel) -> peft.PeftConfig:
    """Configure IA3 on all linears, with the inputs scaled of those that end a block's second half."""
    names = _linears(model)
    second = [name for name in names if _SECOND.fullmatch(name.rpartition(".")[2])]
    return peft.IA3Config(task_type="CAUSAL_LM", target_modules=_matching(names), feedforward_modules=_matching(second))


def _on_linears(kind: type[Any], **options: Any) -> Callable[[PreTrainedModel], peft.PeftConfig]:
    """Return a function that configures a method on all linears that it may have."""

    def config(model: PreTrainedModel) -> peft.PeftConfig:
        names = _matching(_adaptable(model))
        made: peft.PeftConfig = kind(task_type="CAUSAL_LM", target_modules=names, **options)
        return made

    return config


def _patterns(**options: Any) -> Callable[[PreTrainedModel], peft.PeftConfig]:
    """Return a function that configures LoRA with another rank and scale for every third linear."""

    def config(model: PreTrainedModel) -> peft.PeftConfig:
        names = _adaptable(model)
        ranks = {name: 2 + i % 5 for i, name in enumerate(names) if i % 3 == 0}
        alphas = {name: 3 + i % 7 for i, name in enumerate(names) if i % 3 == 1}
        made = {"target_modules": _matching(names), "rank_pattern": ranks, "alpha_pattern": alphas, **options}
        return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **made)

    return config


def _of_attention(**options: Any) -> Callable[[PreTrainedModel], peft.PeftConfig]:
    """Return a function that configures LoRA on the linears of attention, and something else beside it.

    options: of the configuration; a function is called with the model.
    """

    def config(model: PreTrainedModel) -> peft.PeftConfig:
        names = _adaptable(model)
        names = [name for name in names if "attn" in name or "attention" in name] or names
        own = {name: value(model) if callable(value) else value for name, value in options.items()}
        return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=_matching(names), **own)

    return config


def _embedding_and_head(model: PreTrainedModel) -> peft.PeftConfig:
    names = [_name_of(model, model.get_input_embeddings()), *_head(model)]
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=_matching(names))


def _virtual(kind: type[Any]) -> Callable[[PreTrainedModel], peft.PeftConfig]:
    """Return a function that configures a method of virtual tokens."""

    def config(_: PreTrainedModel) -> peft.PeftConfig:
        made: peft.PeftConfig = kind(task_type="CAUSAL_LM", num_virtual_tokens=_VIRTUAL)
        return made

    return config


def _norms(model: PreTrainedModel) -> peft.PeftConfig:
    names = [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
    return peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=_matching(names))


def _head(model: PreTrainedModel) -> list[str]:
    return [_name_of(model, model.get_output_embeddings())]


def _name_of(model: Any, wanted: nn.Module) -> str:
    names: list[str] = [name for name, module in model.named_modules() if module is wanted]
    return names[0]


def _linears(model: PreTrainedModel) -> list[str]:
    """Return the names of all linears but the head."""
    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def _adaptable(model: PreTrainedModel) -> list[str]:
    """Return the names of all linears but those that a mixer reads by itself, which PEFT refuses."""
    mixers = {name.removesuffix(".conv1d") for name, _ in model.named_modules() if name.endswith(".conv1d")}
    return [name for name in _linears(model) if name.removesuffix(".out_proj") not in mixers]


def _matching(names: list[str]) -> str:
    """Return an expression for the whole names of these modules, whatever the numbers in them."""
    return "|".join(sorted({re.sub(r"\.\d+\\\.", r".\\d+\\.", re.escape(name)) for name in names})) or "-"


METHODS: Mapping[str, Method] = {
    "LoRA": Method(_lora),
    "IA3": Method(_ia3),
    "DoRA": Method(_dora),
    "patterns": Method(_patterns(use_rslora=True)),
    "DoRA-patterns": Method(_patterns(use_dora=True)),
    "biases": Method(_patterns(bias="all")),
    "embedding-head": Method(_embedding_and_head),
    "saved-head": Method(_of_attention(modules_to_save=_head)),
    "tokens": Method(_of_attention(trainable_token_indices=_TOKENS)),
    "norms": Method(_norms),
    "AdaLoRA": Method(_on_linears(peft.AdaLoraConfig, init_r=6, target_r=4, lora_alpha=16, total_step=10)),
    "LoHa": Method(_on_linears(peft.LoHaConfig, r=3, alpha=6)),
    "LoKr": Method(_on_linears(peft.LoKrConfig, r=4, alpha=8)),
    "VeRA": Method(_on_linears(peft.VeraConfig, r=8)),
    "OFT": Method(_on_linears(peft.OFTConfig, oft_block_size=8), _QUIET),
    "BOFT": Method(_on_linears(peft.BOFTConfig, boft_block_size=4), _QUIET),
    "HRA": Method(_on_linears(peft.HRAConfig, r=4)),
    "RoAd": Method(_on_linears(peft.RoadConfig, variant="road_2", group_size=8), _QUIET),
    "prompt": Method(_virtual(peft.PromptTuningConfig)),
    "prefix": Method(_virtual(peft.PrefixTuningConfig)),
}
