"""What a merged checkpoint has beside its weights: the base's tokenizer and settings, and its changed configuration."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .bases import MergeBase
from .errors import MergeRefused

CONFIG = "config.json"
_NOT_COPIED = frozenset({CONFIG, "README.md", "adapter_config.json", "trainer_state.json"})
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
_FOLDERS = ("additional_chat_templates",)


def write_beside(
    source: Path, folder: Path, base: MergeBase, fields: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Copy tokenizer, templates and settings of generation, and write config.json. Raises MergeRefused, OSError."""
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in _NOT_COPIED and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
    for name in _FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    config = _changed_config(source, base, dict(fields), dtype)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _changed_config(source: Path, base: MergeBase, fields: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the base's config.json with these fields, in the part of the language model where that is one."""
    try:
        config: dict[str, Any] = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise MergeRefused(f"{CONFIG} of the base cannot be read: {error}") from None
    if base.is_dequantised:
        config.pop("quantization_config", None)
    parts = [config, *(part for name in ("text_config", "llm_config") if isinstance(part := config.get(name), dict))]
    for part in parts:
        part.update({name: value for name, value in fields.items() if part is parts[-1] or name in part})
        if dtype is not None:
            _set_dtype(part, dtype, part is config)
    if "tie_word_embeddings" in fields:
        config["tie_word_embeddings"] = fields["tie_word_embeddings"]
    config["architectures"] = [base.architecture]
    return config


def _set_dtype(part: dict[str, Any], dtype: torch.dtype, always: bool) -> None:
    """Write the type under the name that is there: `torch_dtype` of older files, or `dtype`."""
    name = "torch_dtype" if "torch_dtype" in part else "dtype"
    if always or name in part:
        part[name] = str(dtype).removeprefix("torch.")
