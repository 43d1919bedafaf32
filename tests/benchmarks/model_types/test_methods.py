"""PEFT makes an adapter of every method in the table, on ordinary linears."""

from pathlib import Path

import peft
import pytest

from benchmarks.model_types.adapters import make_adapter
from benchmarks.model_types.checkpoint import write_checkpoint
from benchmarks.model_types.methods import METHODS
from benchmarks.model_types.reference import answer, load
from benchmarks.model_types.setting import COMMON
from benchmarks.model_types.shrinking import Shape

PROMPT = [5, 9, 30, 41, 77, 30]


@pytest.mark.filterwarnings("ignore")
def test_peft_makes_all_and_each_changes_what_is_answered(tmp_path: Path) -> None:
    write_checkpoint("qwen2", Shape.drawn(0, 32), 0, tmp_path / "base")
    plain = answer(load(tmp_path / "base"), PROMPT, 1)
    for name in METHODS:
        adapted = make_adapter(load(tmp_path / "base"), name, 0, tmp_path / name)
        assert peft.PeftConfig.from_pretrained(str(tmp_path / name)).task_type == "CAUSAL_LM"
        assert abs(answer(adapted, PROMPT, 1).logprobs[0] - plain.logprobs[0]) > 1e-4, name


def test_the_common_ones_are_in_the_table() -> None:
    assert {*COMMON} <= {*METHODS}
