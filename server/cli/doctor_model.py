"""The check of a model: whether its folder is whole, and whether its weights and some KV cache fit the memory."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..model_files import model_files
from .adapters import readable_size
from .errors import CommandError
from .findings import FATAL, GOOD, SLOW, Finding, Subject
from .model_check import check_model

SHORT_CACHE = 8192  # tokens, under which few requests run at once
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WEIGHTS = ("*.safetensors", "*.bin")


def model(subject: Subject) -> Iterator[Finding]:
    """Say what memory would be for. A hub id is not looked up."""
    folder = Path(subject.model).expanduser()
    try:
        check_model(subject.model)
    except CommandError as error:
        yield Finding(FATAL, "model", str(error))
        return
    if not folder.exists():
        yield Finding(GOOD, "model", f"{subject.model} is a hub id: it is loaded from the hub's cache, or downloaded")
        return
    if (file := model_files(subject.model).gguf) is not None:
        yield Finding(GOOD, "model", f"{file} in {subject.model!r}, whose blocks are multiplied out when it is loaded")
        return
    weights = next((found for pattern in _WEIGHTS if (found := [*folder.glob(pattern)])), [])
    if not weights:
        yield Finding(FATAL, "model", f"{subject.model!r} holds no weights: get the model anew")
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    yield Finding(GOOD, "model", f"{config.get('model_type', 'a model')} in {subject.model!r}")
    yield from _memory(subject, sum(file.stat().st_size for file in weights), config)


def _memory(subject: Subject, num_bytes: int, config: Mapping[str, Any]) -> Iterator[Finding]:
    if not subject.machine.has_device:
        return
    left = subject.machine.free - num_bytes
    if left < 0:
        yield Finding(
            FATAL, "memory", f"weights take {readable_size(num_bytes)}, {readable_size(-left)} more than is free"
        )
        return
    yield Finding(GOOD, "memory", f"weights take {readable_size(num_bytes)}; {readable_size(left)} are left")
    per_token = _kv_bytes(config)
    if per_token:
        tokens = left // per_token
        text = f"a token of KV cache takes {readable_size(per_token)}: room for {tokens} at most"
        yield Finding(SLOW if tokens < SHORT_CACHE else GOOD, "memory", text)


def _kv_bytes(config: Mapping[str, Any]) -> int | None:
    """Return the bytes of one token's keys and values, for models of the usual form; None for others."""
    config = config.get("text_config") or config
    try:
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config.get("num_key_value_heads") or heads
        per_number = _BYTES[config.get("dtype") or config.get("torch_dtype") or "float32"]
        return 2 * int(config["num_hidden_layers"] * kv_heads * width) * per_number
    except (KeyError, TypeError, ZeroDivisionError):
        return None
