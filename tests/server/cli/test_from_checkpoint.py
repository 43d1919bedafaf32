import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.server.cli.main import main


@pytest.fixture
def pair(oracle: ModuleType, tmp_path: Path) -> tuple[str, str]:
    base = oracle.tiny_model("llama", 3, tmp_path / "base")
    other = oracle.tiny_model("llama", 3, tmp_path / "tuned")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    tensors["model.layers.1.mlp.up_proj.weight"] += torch.ones(96, 1) @ torch.linspace(-1, 1, 64)[None]
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    return str(base), str(other)


def test_what_it_prints_and_writes(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "from-checkpoint", *pair, "--out", str(tmp_path / "out"), "--max-error", "1e-5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODULE", "FORM", "SIZE", "ERROR"]
    assert lines[1].split()[:4] == ["model.layers.1.mlp.up_proj", "low", "rank,", "1"]
    assert lines[2].split() == ["model.norm", "whole", "256B", "0"]
    assert lines[3].startswith(f"{tmp_path / 'out'}: LORA, ")
    assert "no number differs by more than " in lines[3]
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["modules_to_save"]) == (pair[0], ["model.norm"])
    assert main(["adapters", "from-checkpoint", *pair, "--out", str(tmp_path / "exact")]) == 0
    assert "LN_TUNING, " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--max-error", "-1"], 2, "--max-error: -1.0 is no number of 0 or more"),
        (["--max-error", "nan"], 2, "--max-error: nan is no number of 0 or more"),
        (["--rank", "0"], 2, "--rank: 0 is no whole number of 1 or more"),
        (["--out", "."], 2, "--out: there is something at '.' already"),
    ],
)
def test_mistakes_in_flags(
    flags: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapters", "from-checkpoint", "a", "b", "--out", str(tmp_path / "out"), *flags]) == status
    assert message in capsys.readouterr().err


def test_a_refusal(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "from-checkpoint", pair[0], pair[0], "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("peftserve: the two checkpoints are the same to texts")
    assert not (tmp_path / "out").exists()
