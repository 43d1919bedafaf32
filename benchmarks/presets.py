"""The servers that `compare.py` knows: how each is started, what it calls the models, and which fields it takes."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

BASE = "base"  # what the base is called in a trace


@dataclass(frozen=True)
class Models:
    """adapters: folders by name. scratch: a folder for what a server needs besides, such as state. dtype: by name."""

    base: Path
    adapters: Mapping[str, Path]
    scratch: Path
    dtype: str = "bfloat16"

    def folder(self, name: str) -> Path:
        return self.base if name == BASE else self.adapters[name]

    def whole(self, name: str) -> Path:
        """A folder with the base and one adapter in it, which transformers loads together."""
        if name == BASE:
            return self.base
        made = self.scratch / "whole" / name
        made.mkdir(parents=True, exist_ok=True)
        for file in [*self.base.iterdir(), *self.adapters[name].glob("adapter_*")]:
            if not (made / file.name).exists():
                (made / file.name).symlink_to(file.resolve())
        return made


@dataclass(frozen=True)
class Preset:
    """command: with {bin}, {base}, {dtype}, {port}, {scratch} and, as words of their own, {adapters}: `lead`, and then
    `adapter` with {name} and {folder} for each; nothing without adapters. health: answers 200 when the server is ready.
    """

    name: str
    command: str
    lead: str = ""
    adapter: str = "--adapter {name}={folder}"
    dialect: str = "vllm"
    health: str = "/health"
    takes_wholes: bool = False
    max_models: int | None = None

    def words(self, models: Models, port: int) -> list[str]:
        facts = {"bin": Path(sys.executable).parent, "port": port, **vars(models)}
        return [
            part
            for word in shlex.split(self.command)
            for part in (self._adapters(models) if word == "{adapters}" else [word.format(**facts)])
        ]

    def _adapters(self, models: Models) -> list[str]:
        each = shlex.split(self.adapter)
        words = [w.format(name=name, folder=folder) for name, folder in models.adapters.items() for w in each]
        return [*shlex.split(self.lead.format(count=len(models.adapters))), *words] if words else []

    def names(self, models: Models) -> dict[str, str]:
        """What the server calls the models, where it is not their name."""
        return {name: str(models.whole(name)) for name in (BASE, *models.adapters)} if self.takes_wholes else {}


TRANSFORMERS = "{bin}/transformers serve --host 127.0.0.1 --port {port} --dtype {dtype}"
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "peftserve",
            "{bin}/peftserve serve {base} --served-model-name base --port {port} --state-dir {scratch}/{port} "
            "--dtype {dtype} --kv-cache-tokens 32768 {adapters}",
            health="/health/ready",
        ),
        # A model for each adapter, with a copy of the base in it; each runs one request at a time.
        Preset("transformers-serve", TRANSFORMERS, dialect="transformers", takes_wholes=True),
        # It has one batch of one model: a request for another one ends those that run.
        Preset(
            "transformers-batching",
            TRANSFORMERS + " --continuous-batching --cb-block-size 32 --cb-num-blocks 1024",
            dialect="transformers",
            takes_wholes=True,
            max_models=1,
        ),
        Preset(
            "vllm",
            "vllm serve {base} --served-model-name base --port {port} --dtype {dtype} {adapters}",
            lead="--enable-lora --max-loras {count} --max-lora-rank 64 --lora-modules",
            adapter="{name}={folder}",
        ),
    )
}


def parse(text: str) -> Preset:
    """`PRESET`, `NAME=COMMAND`, or `NAME:PRESET=COMMAND` for a command with a preset's other fields.

    Raises ValueError with a sentence.
    """
    match = re.fullmatch(r"([\w.-]+)(?::([\w.-]+))?(?:=(.+))?", text, re.DOTALL)
    if not match:
        raise ValueError(f"{text!r} is not PRESET, NAME=COMMAND or NAME:PRESET=COMMAND")
    name, like, command = match.groups()
    if (like or ("" if command else name)) and (like or name) not in PRESETS:
        raise ValueError(f"no preset is named {like or name!r}: there are {', '.join(PRESETS)}")
    preset = PRESETS.get(like or name) or Preset(name, "")
    return replace(preset, name=name, command=command or preset.command)


def environment() -> dict[str, str]:
    """No server asks a hub for what lies in a folder."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}
