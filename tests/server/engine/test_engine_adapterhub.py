"""AdapterHub's methods in the engine, with its own greedy tokens; see tests/adapters/adapterhub."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FIXTURE = Path(__file__).parents[2] / "adapters/adapterhub/fixture"
PROMPT = [5, 17, 42, 9, 7, 25, 31, 8]
CLEAR = 2e-3  # a smaller margin may go the other way


def answers_of(architecture: str) -> dict[str, list[int]]:
    answers = json.loads((FIXTURE / architecture / "answers.json").read_text())
    return {name: answer["tokens"] for name, answer in answers.items() if answer["margin"] > CLEAR}


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "gpt2"])
def test_all_its_methods_pefts_lora_and_the_base_in_one_batch(
    architecture: str, make_bench: Callable[..., Any], oracle: ModuleType, tmp_path: Path
) -> None:
    base, wanted = FIXTURE / architecture, answers_of(architecture)
    lora = oracle.random_adapter(base, tmp_path / "peft", 3, r=4, target_modules="all-linear")
    wanted["peft"] = oracle.PeftOracle(base).greedy(PROMPT, 12, ((lora, 1.0),)).token_ids
    folders = {name: lora if name == "peft" else base / name for name in wanted if name != "base"}
    bench = make_bench(folders.items(), model=str(base))
    for copy in range(2):
        for name in wanted if copy else reversed(wanted):
            parts = [] if name == "base" else [name]
            # The second copy of each in pages of its own, and in a prefill that its neighbours cut otherwise.
            bench.add(f"{name}/{copy}", PROMPT, parts, salt=str(copy), max_tokens=len(wanted[name]))
    answers = bench.run()
    for copy in range(2):
        got = {name: answers[f"{name}/{copy}"].token_ids for name in wanted}
        assert got == wanted
    bench.assert_idle()


def test_a_parallel_bottleneck_in_a_mixture_is_its_weighted_term(
    make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """Half of it twice, as two adapters, is all of it."""
    base = FIXTURE / "llama"
    other = tmp_path / "other"
    other.mkdir()
    for file in (base / "parallel").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    bench = make_bench({"parallel": base / "parallel", "other": other}.items(), model=str(base))
    answer = bench.ask(PROMPT, [("parallel", 0.5), ("other", 0.5)], max_tokens=12)
    assert answer.token_ids == answers_of("llama")["parallel"]


def test_an_upload_says_what_it_is(make_bench: Callable[..., Any]) -> None:
    base = FIXTURE / "llama"
    card = make_bench(model=str(base)).engine.inspect_adapter("a", base / "pfeiffer")
    assert (card.method, card.rank, card.sites, card.consumed) == ("BOTTLENECK", 0, 2, 8)
    assert card.primitives == {"bottleneck": 2}
    union = make_bench(model=str(base)).engine.inspect_adapter("union", base / "union")
    assert (union.method, union.rank, union.virtual_tokens, union.exclusive) == ("UNION", 2, 2, ("KV prefix",))
    assert union.primitives == {"bottleneck": 2, "low_rank": 4, "kv_prefix": 1}
