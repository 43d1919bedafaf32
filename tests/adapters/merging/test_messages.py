"""The process of a merge, as a server starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from safetensors.numpy import load_file, save_file

from peftserve.adapters.merging.kinds import Options
from peftserve.adapters.merging.messages import MODULE, MergeOrder
from peftserve.adapters.merging.plan import MergeSource

HEAD = "base_model.model.lm_head.weight"


def write(folder: Path, seed: int, head: float = 1.0) -> MergeSource:
    folder.mkdir()
    draw = numpy.random.default_rng(seed)
    config = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"base_model.model.layers.{layer}.q_proj.{factor}.weight": draw.standard_normal(shape).astype(numpy.float16)
        for layer in (0, 1, 10)
        for factor, shape in (("lora_A", (3, 20)), ("lora_B", (10, 3)))
    }
    save_file({**tensors, HEAD: numpy.full((700, 500), head, numpy.float32)}, folder / "adapter_model.safetensors")
    return MergeSource(folder.name, str(folder), 0.5)


def run(order: MergeOrder) -> tuple[int, list[dict[str, Any]]]:
    Path(order.folder).mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    process.stdin.flush()
    lines = [json.loads(line) for line in process.stdout]
    process.stdin.close()
    process.stdout.close()
    return process.wait(), lines


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_progress_is_told(tmp_path: Path) -> None:
    sources = [write(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))]
    files = []
    for number, seed in enumerate((7, 7, 8)):
        options = Options("dare_ties", 0.4, seed=seed)
        status, lines = run(MergeOrder(sources, options, str(tmp_path / str(number))))
        assert status == 0
        assert lines == [*({"type": "progress", "done": i, "total": 4} for i in range(1, 5)), {"type": "done"}]
        files.append([(tmp_path / str(number) / name).read_bytes() for name in sorted(os.listdir(tmp_path / "0"))])
    assert files[0] == files[1]
    assert files[0] != files[2]
    found = load_file(tmp_path / "0" / "adapter_model.safetensors")
    assert list(found) == sorted(found)
    assert {tensor.dtype.name for key, tensor in found.items() if key != HEAD} == {"float16"}
    assert (found[HEAD] == 1).all()
    assert found[HEAD].shape == (700, 500)


def test_what_is_refused_is_told(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 1), write(tmp_path / "b", 2, head=2.0)
    status, lines = run(MergeOrder([a, b], Options(), str(tmp_path / "out")))
    assert (status, lines[-1]["type"], lines[-1]["kind"]) == (1, "failed", "UnsupportedAdapter")
    assert lines[-1]["message"].startswith(f"a and b have different values in {HEAD}")
    status, (line,) = run(MergeOrder([a], Options("mean"), str(tmp_path / "none")))
    assert (status, line["kind"], line["param"]) == (1, "InvalidAdapter", "combination_type")


def test_it_ends_with_its_input(tmp_path: Path) -> None:
    """A server that is killed leaves no process: this one is asked for nothing, and then for nothing more."""
    order = MergeOrder([write(tmp_path / "a", 1)], Options(), str(tmp_path / "missing"))
    gate = f"import os; os.mkfifo({str(tmp_path / 'fifo')!r})"
    subprocess.run([sys.executable, "-c", gate], check=True)
    # A configuration that never comes keeps it from ending by itself.
    (tmp_path / "a" / "adapter_config.json").unlink()
    os.link(tmp_path / "fifo", tmp_path / "a" / "adapter_config.json")
    finished = subprocess.run([sys.executable, "-m", MODULE], input=msgspec.json.encode(order) + b"\n", timeout=60)
    assert finished.returncode == 2
