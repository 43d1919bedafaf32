"""Broken checkpoints of every method: a clear refusal each time, and never an adapter that is served half."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter

Tensors = dict[str, torch.Tensor]
# Tensors that a checkpoint may lack: of training only, constant, or copies of what it has elsewhere.
OPTIONAL = ("velora_embed", "monteclora_sampler", ".zeros", "base_layer.weight", "randlora_A", "randlora_B")
ABSURD: tuple[Any, ...] = (-1, 0, 10**9, 1e300, "x", [], {}, [None], True, 0.5)


@pytest.fixture(scope="module")
def made(llama: Any, oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The catalog's checkpoint of a name, written once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            entry = oracle.CATALOG[name]
            config = entry.make(oracle.kind_of("llama"))
            folder = tmp_path_factory.mktemp(name)
            folders[name] = oracle.method_adapter(llama.folder, folder, config, randomize=entry.randomize)
        return folders[name]

    return make


def names() -> list[str]:
    """Read from the catalog's text, which is not importable when tests are collected."""
    lines = (
        Path(__file__).parents[2].joinpath("oracle/catalog.py").read_text().split("CATALOG: Mapping")[1].splitlines()
    )
    found = [line.split('"')[1] for line in lines if line.startswith('    "')]
    return [name for name in found if name != "lora-experts"]  # this base has no experts


def broken_files(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Tensors]]:
    needed = [name for name in tensors if not any(part in name for part in OPTIONAL)] or list(tensors)
    first, last = min(needed), max(needed)
    for key in {first, last}:
        others = {name: tensor for name, tensor in tensors.items() if name != key}
        yield f"without {key}", others
        yield f"{key} renamed", {**others, key.replace("layers.0", "layers.7") + "_": tensors[key]}
        yield f"{key} of another rank", {**others, key: tensors[key][None].contiguous()}
        if tensors[key].numel() > 1 and tensors[key].dim():
            yield f"{key} truncated", {**others, key: tensors[key][..., :-1].contiguous()}
        if tensors[key].is_floating_point():
            yield f"{key} with NaN", {**others, key: torch.full_like(tensors[key], float("nan"))}
            yield f"{key} as integers", {**others, key: torch.ones_like(tensors[key], dtype=torch.int64)}
        if tensors[key].dim() == 2 and tensors[key].shape[0] != tensors[key].shape[1]:
            yield f"{key} transposed", {**others, key: tensors[key].T.contiguous()}
    yield "with a tensor more", {**tensors, "base_model.model.model.layers.0.self_attn.q_proj.other": torch.ones(2)}
    yield "empty", {}


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_broken_tensors_are_refused(name: str, made: Callable[[str], Path], llama: Any, tmp_path: Path) -> None:
    served, messages = [], {}
    for what, tensors in broken_files(load_file(made(name) / "adapter_model.safetensors")):
        folder = tmp_path / "broken"
        shutil.copytree(made(name), folder, dirs_exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        try:
            compile_adapter(folder, llama.table, torch.float32, model=llama.model)
            served.append(what)
        except AdapterError as error:
            messages[what] = error.message
    assert not served
    assert all(10 < len(message) < 2000 for message in messages.values()), messages


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_absurd_fields_are_refused_or_change_nothing(
    name: str, made: Callable[[str], Path], llama: Any, tmp_path: Path
) -> None:
    """Never an exception of another kind, whatever a field holds.

    Of each method it is every other field, beginning with the first or the second by the length of its name.
    """
    shutil.copytree(made(name), tmp_path / "broken")
    file = tmp_path / "broken" / "adapter_config.json"
    config = json.loads(file.read_text())
    fields = [*list(config)[len(name) % 2 :: 2], "a_field_that_nobody_knows"]
    for i, field in enumerate(fields):
        value = ABSURD[(i + len(name) // 2) % len(ABSURD)]  # another one in another method
        file.write_text(json.dumps({**config, field: value}))
        with suppress(AdapterError):
            compiled = compile_adapter(tmp_path / "broken", llama.table, torch.float32, model=llama.model)
            said = any(field in note for note in compiled.facts.notes)
            assert field != "a_field_that_nobody_knows" or not value or said
