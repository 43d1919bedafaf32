"""Which fields of adapter_config.json each method has beside LoRA, as PEFT 0.21 writes them. No torch.

To serve a method is to add a row here and its compiler to one of the tables that `compile` puts together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Fields that describe the checkpoint or matter to training only, in every method.
_COMMON = frozenset(
    {"peft_type", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping"}
    | {"peft_version", "runtime_config"}
)
_TARGETS = frozenset({"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"})
# Compiled for every method in one place.
_AUXILIARY = frozenset({"modules_to_save", "trainable_token_indices", "bias"})


@dataclass(frozen=True)
class MethodFields:
    """reads: names that the compiler reads, in one string. ignored: names that change nothing at inference.

    refused: name to why it is refused when set, and what to do. has_targets: the method is on modules of the base.
    """

    reads: str = ""
    ignored: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    has_targets: bool = True

    @property
    def known(self) -> frozenset[str]:
        targets = _TARGETS | _AUXILIARY if self.has_targets else frozenset()
        return _COMMON | targets | frozenset(self.reads.split()) | frozenset(self.ignored.split())


METHOD_FIELDS: Mapping[str, MethodFields] = {
    "TRAINABLE_TOKENS": MethodFields("token_indices target_modules", "init_weights", has_targets=False),
}
