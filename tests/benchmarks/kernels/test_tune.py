"""The choice itself, with made-up times: what a GPU says of each candidate, only a GPU can."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import tune as tuning_run
from benchmarks.kernels.main import run
from benchmarks.kernels.steps import SHAPES
from benchmarks.kernels.tune import candidates, tune
from peftserve.kernels.bypass.triton.tuning import Blocks, Phase, defaults, load


def test_there_is_nothing_to_tune_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--tune", "--device", "cpu"])
    assert "torch sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("phase", Phase)
def test_candidates_may_all_be_on_a_multiprocessor(phase: Phase) -> None:
    found = candidates(phase)
    assert len(set(found)) == len(found) > 10
    for blocks in found:
        assert blocks.programs * blocks.warps * 32 * blocks.registers <= 65536
        assert all(
            size & (size - 1) == 0 for size in (blocks.block_m, blocks.block_n, blocks.block_k, blocks.max_split)
        )


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Options of a run whose times are made up: thin blocks are best for a few tokens, with more warps for wide inputs;
    for the rest, blocks of more rows.
    """

    def times(step: SimpleNamespace, choices: Sequence[Blocks]) -> dict[Blocks, float]:
        rows, width = step.scenario.tokens, step.shape.layer[0].in_features
        wanted = (4 if width < 5000 else 8) if rows <= 64 else 8
        return {
            blocks: abs(blocks.warps - wanted) + abs(blocks.block_m - (16 if rows <= 64 else 64)) + i / 1000
            for i, blocks in enumerate(choices)
        }

    def step(scenario: object, shape: object, **_: object) -> SimpleNamespace:
        return SimpleNamespace(scenario=scenario, shape=shape)

    for name, value in {
        "_times": times,
        "make_step": step,
        "layers_for": lambda *_: 1,
        "free": lambda device: None,
        "machine_of": lambda device: {"device": device},
    }.items():
        monkeypatch.setattr(tuning_run, name, value)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    return argparse.Namespace(device="cuda", dtype="bfloat16", shape="llama-8b", minutes=None, jobs=0)


def test_the_fastest_on_all_steps_of_a_kind_becomes_its_row(
    made_up: argparse.Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tune(made_up, tmp_path)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert said == json.loads((tmp_path / "Some_GPU.json").read_text())["rows"]
    assert path == tmp_path / "Some_GPU.json"
    table = load("Some GPU", defaults(), tmp_path)
    for tokens, width, expected in (
        (1, 4096, (16, 4)),
        (64, 14336, (16, 8)),
        (200, 512, (64, 8)),
        (9000, 4096, (64, 8)),
    ):
        for rank in (1, 40, 500):
            blocks = table.blocks(tokens, rank, width)
            assert (blocks.block_m, blocks.warps) == expected
            assert blocks in candidates(Phase.DECODE if tokens <= 256 else Phase.PREFILL)


def test_a_sweep_that_runs_out_of_time_writes_no_table(
    made_up: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows so far are printed."""
    made_up.minutes = 1.0
    clock = iter(range(0, 10_000, 25))  # seconds: of the start, and before each kind of step
    monkeypatch.setattr(tuning_run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert tune(made_up, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("{") for line in lines] == [True, True, False]
    assert lines[-1] == "no table: 2 of 24 rows were chosen in time"


def test_what_is_chosen_between_is_compiled_by_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate once for each width, and one that cannot be compiled costs no other."""
    compiled = list[Blocks]()

    class Backend:
        def compile(self, blocks: Blocks) -> None:
            compiled.append(blocks)
            raise RuntimeError("too many registers")

    monkeypatch.setattr(tuning_run, "make_step", lambda *_, **__: None)
    monkeypatch.setattr(tuning_run, "_backend", lambda step, blocks: Backend())
    choices = candidates(Phase.DECODE)
    for start in range(3):
        tuning_run._compile(SHAPES["smollm-135m"], torch.float32, Phase.DECODE, choices[start::3])
    assert len(compiled) == len(choices)
    assert set(compiled) == set(choices)
