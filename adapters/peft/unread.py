"""Parts of an adapter that change nothing, and are left out by name: on modules that no text passes, or that never run.

Those are the towers and projectors of a multimodal model; and convolutions of a short memory, as in LFM2, of which
transformers takes the weight and computes by itself: PEFT puts its layer in their place, and nobody calls it. PEFT
itself refuses a LoRA there on some kinds of models. So it is with linears that are read only (Mamba's `dt_proj`,
LongCat's routers), for methods that leave the base's weight as it is. Knows no torch.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from ..errors import UnsupportedAdapter
from ..sites import SiteTable
from .config import AnyConfig, LoraConfig, Targets
from .patterns import Deadline
from .targets import Matcher
from .tensors import Checkpoint

# What transformers' multimodal classes call what is not the decoder, on any base: adapters that were trained on such a
# class are served on its text model alone, too.
_TOWERS = frozenset(
    {"vision_tower", "visual", "vision_model", "vision_encoder", "image_tower", "video_tower", "audio_tower"}
    | {"audio_encoder", "speech_encoder", "multi_modal_projector", "mm_projector", "connector", "embed_vision"}
    | {"embed_audio"}
)
_OWN = ("weight", "bias", "base_layer.")  # what PEFT saves of a module itself, which has an effect
_WITHIN = frozenset({"model", "thinker"})
# Methods whose tensors at one module depend on the shapes of all that were trained, or on their order.
_TOGETHER = frozenset({"VERA", "PVERA", "RANDLORA", "UNILORA", "TINYLORA", "PSOFT", "ADAMSS", "WAVEFT", "FROD"})
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def set_aside(config: AnyConfig, checkpoint: Checkpoint, table: SiteTable, deadline: Deadline) -> tuple[str, ...]:
    """Take the tensors of such modules out of a checkpoint. Returns the modules' names, `*` for a layer's number.

    Raises UnsupportedAdapter for a method that cannot be told apart from them.
    """
    around = around_read(config, table)
    names = [
        name
        for name in checkpoint
        if _is_unread(name, table) or _is_uncalled(name, config, table) or _layer_of(name, around)
    ]
    targets = getattr(config, "targets", None)
    beside = names or any(_layer_of(name, table.read) for name in checkpoint)
    if config.peft_type in _TOGETHER and targets is not None and (beside or takes_unread(targets, table, deadline)):
        raise UnsupportedAdapter(
            f"this {config.peft_type} adapter was trained on modules too that no text passes, such as a multimodal "
            "model's towers, or that the base never calls; its tensors at the others depend on those. Train it with "
            "target_modules of the others alone",
            param="target_modules",
        )
    for name in names:
        checkpoint.find(name)
    modules = (_layer_of(name, around) or name.rpartition(".lora_")[0] or name.rpartition(".")[0] for name in names)
    return tuple(dict.fromkeys(_NUMBER.sub("*", module) for module in modules))


def around_read(config: AnyConfig, table: SiteTable) -> frozenset[str]:
    """Return the linears that are read only, on which what the method puts changes nothing.

    None for methods whose tensors depend on each other, for those that have changed the base's weight, and where
    modules of such names are saved.
    """
    variant, auxiliary = getattr(config, "variant", None), getattr(config, "auxiliary", None)
    saved = () if auxiliary is None else auxiliary.modules
    changes_base = variant is not None and (variant.start or variant.kasa)
    if config.peft_type in _TOGETHER or changes_base or any(name.endswith(tuple(saved)) for name in table.read):
        return frozenset()
    return table.read


def without_read(config: AnyConfig, table: SiteTable) -> SiteTable:
    """Return the table without these linears, so that targets may take them in."""
    around = around_read(config, table)
    sets = (table.other_modules - around, table.irregular - around, table.matrices - around)
    return replace(table, other_modules=sets[0], irregular=sets[1], matrices=sets[2])


def for_text(config: AnyConfig, unused: tuple[str, ...], table: SiteTable) -> AnyConfig:
    """Return a configuration without the modules_to_save that are among the unused modules, and not in the base."""
    own = (*table.sites, *table.other_modules)
    parents = {
        ".".join(parts[:end]) for parts in (name.split(".") for name in unused) for end in range(1, 1 + len(parts))
    }
    modules = tuple(
        end
        for end in config.auxiliary.modules
        if any(name.endswith(end) for name in own) or not any(parent.endswith(end) for parent in parents)
    )
    return replace(config, auxiliary=replace(config.auxiliary, modules=modules))


def takes_unread(targets: Targets, table: SiteTable, deadline: Deadline) -> bool:
    """Return whether a configuration targets a module that no text passes. Raises InvalidAdapter."""
    if targets.all_linear:
        return bool(table.unread)
    matches = Matcher(targets, deadline)
    return any(matches(name) for name in table.unread)


def _is_uncalled(name: str, config: AnyConfig, table: SiteTable) -> bool:
    """Return whether this is a tensor of a method on a module that never runs, and not the module's own."""
    if isinstance(config, LoraConfig):
        return name.rpartition(".lora_")[0] in table.uncalled
    module, own = next(((each, name[len(each) + 1 :]) for each in _ancestors(name) if each in table.uncalled), ("", ""))
    return bool(module) and not own.startswith(_OWN)


def _ancestors(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))


def _layer_of(name: str, modules: frozenset[str]) -> str | None:
    """Return which of the modules a tensor is of, if it is of a layer that a method has put around that."""
    parts = name.split(".")
    found = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1) if parts[end:] not in (["weight"], ["bias"]))
    return next((module for module in found if module in modules), None)


def _is_unread(name: str, table: SiteTable) -> bool:
    parts = name.split(".")
    within = 1 if parts[0] in _WITHIN else 0
    if len(parts) > within + 1 and parts[within] in _TOWERS:
        root = ".".join(parts[: within + 1])
        return root not in table.other_modules and root not in table.sites
    return any(each in table.unread for each in _ancestors(name))
