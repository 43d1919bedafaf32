import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.server.engine.model.fingerprint import fingerprint


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    torch.manual_seed(0)
    weights = {f"layers.{i}.weight": torch.randn(64, 16 + i) for i in range(5)} | {"bias": torch.randn(3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "text": {"layers": 5, "dtype": "float32"}}))
    return folder


def changed(folder: Path, change: Callable[[Path], object]) -> set[str]:
    """The parts that a change of the folder changes."""
    before = fingerprint(str(folder))
    assert set(before) == {"config", "tensors", "numbers"}
    change(folder)
    after = fingerprint(str(folder))
    return {part for part in before if before[part] != after[part]}


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_what_makes_another_base(base: Path) -> None:
    assert changed(base, lambda f: edit(f, lambda w: w["bias"].mul_(1.001))) == {"numbers"}
    assert changed(base, lambda f: edit(f, lambda w: w["layers.3.weight"].normal_())) == {"numbers"}
    assert changed(base, lambda f: edit(f, lambda w: w.update(bias=torch.zeros(4)))) == {"tensors", "numbers"}
    assert changed(base, lambda f: edit(f, lambda w: w.pop("bias"))) == {"tensors", "numbers"}
    assert changed(base, lambda f: (f / "config.json").write_text('{"hidden_size": 65}')) == {"config"}


def test_what_makes_none(base: Path, tmp_path: Path) -> None:
    assert changed(base, shard) == set()
    copy = shutil.copytree(base, tmp_path / "elsewhere")
    assert fingerprint(str(copy)) == fingerprint(str(base))
    other = {"dtype": "bfloat16", "transformers_version": "9", "_name_or_path": "x"}
    text = json.dumps({"text": {"layers": 5, "use_cache": False}, "hidden_size": 64} | other, indent=4)
    assert changed(base, lambda f: (f / "config.json").write_text(text)) == set()
    assert changed(base, lambda f: save_file({"x": torch.ones(2)}, f / "adapter_model.safetensors")) == set()


def shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = list(weights)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "model.safetensors").unlink()


def test_a_file_of_another_format_is_one_tensor(base: Path) -> None:
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert changed(base, lambda f: (f / "pytorch_model.bin").write_bytes(b"x" * 1000)) == {"tensors", "numbers"}


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_cannot_be_read_binds_nothing(file: str, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    (base / file).write_bytes(b"\xff" * 20)
    with caplog.at_level(logging.WARNING):
        assert fingerprint(str(base)) == {}
    assert "cannot be told" in caplog.text
