"""`peftserve serve` on folders that are not quite a base: the bare base, or one sentence and exit status 1."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

PATIENCE = 180.0
PROMPT = [5, 17, 42, 99, 7, 250, 31, 8]


@pytest.fixture
def base(oracle: ModuleType, tmp_path: Path) -> Path:
    folder: Path = oracle.tiny_model("llama", 5, tmp_path / "base")
    return folder


@pytest.fixture
def adapter(oracle: ModuleType, base: Path, tmp_path: Path) -> Path:
    folder: Path = oracle.random_adapter(base, tmp_path / "adapter", 1)
    return folder


def refused(folder: Path, state: Path) -> str:
    """Start a server that must fail, and return the reason in its log."""
    command = [sys.executable, "-m", "peftserve.server.cli.main", "serve", str(folder), "--port", "0"]
    ended = subprocess.run([*command, "--state-dir", str(state)], capture_output=True, text=True, timeout=PATIENCE)
    log = ended.stdout + ended.stderr
    assert ended.returncode == 1, log
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if "Cannot start: " in line]
    return line.partition("Cannot start: ")[2]


def test_a_base_that_lacks_a_tensor_does_not_start(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert refused(base, tmp_path / "state") == (
        f"this model cannot be served: the checkpoint in {base} lacks 1 of the 21 tensors of a LlamaForCausalLM: "
        "model.layers.1.mlp.up_proj.weight. Serve a whole causal language model, as save_pretrained writes it"
    )


def test_a_base_beside_an_adapter_is_bare(oracle: ModuleType, base: Path, adapter: Path, tmp_path: Path) -> None:
    """And the adapter can be served from where it lies."""
    answers = oracle.PeftOracle(base)
    wanted = [answers.sure(PROMPT, 8), answers.sure(PROMPT, 8, ((adapter, 1.0),))]
    assert wanted[0] != wanted[1]
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / file, both / file)
    server = oracle.RunningServer.start(both, tmp_path / "state", tmp_path / "log", "--adapter", f"beside={both}")
    try:
        for model, tokens in zip(("base", "beside"), wanted, strict=True):
            body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            response = server.client.post("/v1/completions", json=body | ({} if model == "base" else {"model": model}))
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["token_ids"][: len(tokens)] == tokens
    finally:
        server.stop()
    assert f"There is an adapter in {both}, too" in (tmp_path / "log").read_text()
