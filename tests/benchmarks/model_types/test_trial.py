"""Trials of a few types, of every kind of verdict."""

from pathlib import Path

import pytest

from benchmarks.model_types.setting import COMMON, Setting
from benchmarks.model_types.trial import BASE, run_trial

COLUMNS = (BASE, *COMMON)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "seed"), [("qwen3_moe", 3), ("gpt2", 1), ("marian", 2)])
def test_served_types_are_exact(model_type: str, seed: int, tmp_path: Path) -> None:
    verdicts = run_trial(model_type, Setting(seed, (("hidden", 32),)), tmp_path)
    assert verdicts == dict.fromkeys(COLUMNS, "exact")


@pytest.mark.filterwarnings("ignore")
def test_prefixes_reach_layers_that_share_keys(tmp_path: Path) -> None:
    """PEFT gives Gemma 4's narrower layers a part of the prefix, and Gemma 3n's tokens no inputs of each layer."""
    for model_type, prompt in (("gemma3n_text", "refused: PROMPT_TUNING"), ("gemma4_text", "not in PEFT: ")):
        setting = Setting(3, (("hidden", 32),), ("prefix", "prompt"), (20,))
        verdicts = run_trial(model_type, setting, tmp_path / model_type)
        assert verdicts["prefix"] == "exact"
        assert verdicts["prompt"].startswith(prompt)


@pytest.mark.filterwarnings("ignore")
def test_a_type_that_is_refused_says_why(tmp_path: Path) -> None:
    verdicts = run_trial("moshi", Setting(), tmp_path)
    assert set(verdicts) == set(COLUMNS)
    assert all(said.startswith("refused: its logits with the paged KV cache") for said in verdicts.values())


@pytest.mark.filterwarnings("ignore")
def test_a_type_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    verdicts = run_trial("musicgen", Setting(), tmp_path)
    assert list(verdicts) == ["base"]
    assert verdicts["base"].startswith("not built: AttributeError: ")
