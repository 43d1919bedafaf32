"""A merge holds a tensor and not a model, and a killed one leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from peftserve.server.checkpoint.publication import published

pytestmark = pytest.mark.slow

LAYERS, WIDTH, VOCABULARY = 10, 1024, 4096
PROGRAM = """
import resource, sys
from pathlib import Path
from peftserve.server.checkpoint.members import Chosen
from peftserve.server.checkpoint.merge import MergeRequest, merge
model, adapter, out = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(MergeRequest(model, "base", [Chosen("a", Path(adapter), 0.5)], Path(out)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a base of zeros in bfloat16, some hundred MB, and beside it a LoRA on all of its linears."""
    root = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(root / "base")
    tensors = {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in model.state_dict().items()}
    save_file(tensors, root / "base" / "model.safetensors", {"format": "pt"})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    LoraConfig(r=4, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(root / "adapter")
    factors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            factors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(4, module.in_features)
            factors[f"base_model.model.{name}.lora_B.weight"] = torch.ones(module.out_features, 4)
    save_file(factors, root / "adapter" / "adapter_model.safetensors")
    yield root
    (root / "base" / "model.safetensors").unlink()


def merging(root: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(root / "base"), str(root / "adapter"), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_memory_is_that_of_a_tensor(checkpoint: Path, tmp_path: Path) -> None:
    process = merging(checkpoint, tmp_path / "merged")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    size = (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert size > 300_000_000
    assert int(printed) < size / 3, f"the merge took {printed} of {size} bytes"


def test_a_killed_merge_leaves_no_folder_and_the_next_one_cleans_up(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    process = merging(checkpoint, out)
    while not (written := list(tmp_path.glob(".merged.*.partial/model.safetensors"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    assert written[0].exists()
    with published(out):
        assert not written[0].exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
