"""The choice itself, with made-up times: what a GPU says of each candidate, only a GPU can."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import tune as tuning_run
from benchmarks.kernels.main import run
from benchmarks.kernels.problem import SHAPES
from benchmarks.kernels.tune import FACTOR, KINDS, RANKS, short, tune
from peftserve.kernels.bypass.triton.choice import Tuning, load
from peftserve.kernels.bypass.triton.designs import Design, candidates, rows_apart
from peftserve.kernels.bypass.triton.model import Device

DEVICE = Device(132, 4e12)
NUM_ROWS = len(KINDS) * len(RANKS) * 2


def test_there_is_nothing_to_tune_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--tune", "--device", "cpu"])
    assert "torch sees no GPU" in capsys.readouterr().err


def test_kinds_are_whole_steps() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert all(rows % each == 0 and rows // each <= 64 for rows, each in KINDS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Sequence[Design]]]:
    """What was timed. In the made-up times the last of the likely ones is the fastest, and one could not run."""
    seen = list[tuple[int, Sequence[Design]]]()

    def times(problem: SimpleNamespace, choices: Sequence[Design]) -> dict[Design, float]:
        seen.append((problem.scenario.tokens, choices))
        return {design: 1e-5 * (len(choices) - i) for i, design in enumerate(choices) if i or len(choices) == 1}

    def problem(scenario: object, shape: object, **_: object) -> SimpleNamespace:
        return SimpleNamespace(scenario=scenario, shape=shape)

    for name, value in {
        "_times": times,
        "make_problem": problem,
        "layers_for": lambda *_: 1,
        "free": lambda device: None,
        "machine_of": lambda device: {"device": device},
        "device_of": lambda device: DEVICE,
    }.items():
        monkeypatch.setattr(tuning_run, name, value)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    return seen


def options(minutes: float | None = None) -> argparse.Namespace:
    return argparse.Namespace(device="cuda", dtype="bfloat16", shape="llama-8b", minutes=minutes, jobs=0)


def test_the_fastest_of_the_likely_ones_becomes_the_row(
    asked: list[tuple[int, Sequence[Design]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tune(options(), tmp_path)
    rows = load("Some GPU", tmp_path)
    assert path == tmp_path / "Some_GPU.json"
    assert len(rows) == len(asked) == NUM_ROWS
    model = Tuning(DEVICE, SHAPES["llama-8b"].layer)
    for row, (tokens, likely) in zip(rows, asked, strict=True):
        best = model.ranked(row.rows, row.each, row.rank, row.width)[0][0]
        slowest = {design: s for s, design in model.ranked(row.rows, row.each, row.rank, row.width)}[likely[-1]]
        assert best <= slowest <= FACTOR * best
        assert tokens == row.rows
        assert (row.design.shrink, row.design.expand) == (likely[-1].shrink, likely[-1].expand)
        assert row.design.beside == (row.rows <= 128)
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if " each, rank " in line]) == NUM_ROWS
    assert said[-1] == f"wrote Some_GPU.json: {NUM_ROWS} of {NUM_ROWS} rows measured, the rest by the model"


def test_kinds_for_which_there_is_no_time_keep_the_models_choice(
    asked: list[tuple[int, Sequence[Design]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100_000, 20))  # seconds: at the start, and before each kind of step
    monkeypatch.setattr(tuning_run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    tune(options(minutes=1.0), tmp_path)
    rows, model = load("Some GPU", tmp_path), Tuning(DEVICE, SHAPES["llama-8b"].layer)
    assert len(asked) == 2
    assert len(rows) == NUM_ROWS
    for row in rows[2:]:
        assert row.design == model.design(row.rows, [row.each] * (row.rows // row.each), row.rank, row.width)


def test_a_kind_of_which_nothing_ran_keeps_the_models_choice(
    asked: list[tuple[int, Sequence[Design]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_run, "_times", lambda problem, choices: {})
    tune(options(), tmp_path)
    assert all(row.design.shrink in [each.shrink for each in candidates()] for row in load("Some GPU", tmp_path))


def test_what_is_chosen_between_is_compiled_by_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate once for each kind of group, and one that cannot be compiled costs no other."""
    compiled, pooled = list[Design](), list[int]()

    class Backend:
        def compile(self, design: Design) -> None:
            compiled.append(design)
            raise RuntimeError("too many registers")

    class Pool:
        def __init__(self, jobs: int) -> None:
            pooled.append(jobs)

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None: ...

        def starmap(self, function: object, work: Sequence[tuple[object, ...]], chunksize: int) -> None:
            for each in work:
                tuning_run._compile(*each)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning_run, "get_context", lambda kind: SimpleNamespace(Pool=Pool))
    monkeypatch.setattr(tuning_run, "make_problem", lambda *_, **__: None)
    monkeypatch.setattr(tuning_run, "_backend", lambda problem, design: Backend())
    shape = SHAPES["smollm-135m"]
    tuning_run._compile_all(shape, torch.bfloat16, Tuning(DEVICE).all_designs(), 3)
    assert pooled == [3]
    assert len(compiled) == len(candidates()) * len(set(shape.layer))
    assert set(compiled) == set(candidates())


def test_a_design_is_short_enough_for_a_line() -> None:
    assert short(rows_apart()) == "1 16/256/256/4/1 16/512/1/2/1"
