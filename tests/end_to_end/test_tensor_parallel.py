"""A base divided among two ranks behind a real server: PEFT's tokens, a reason where not, an error when one dies."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RANKS = 2
PROMPT = [5, 9, 20, 33, 41, 7, 8, 60]
MAX_TOKENS = 4
# Each way in which a primitive is cut: by outputs, by inputs, by heads, multiplied out first, and not at all.
METHODS = ("lora-bias-all", "ia3", "vera", "road-1", "oft", "shira", "c3a", "prefix-tuning", "lora-saving-modules")
SOON = 45.0
"""Seconds within which an error must come, before --engine-timeout. On an idle machine it takes less than 2."""


async def test_ranks_give_pefts_tokens_and_their_loss_is_an_error_at_once(
    oracle: ModuleType, serve: Callable[..., Any], tmp_path: Path
) -> None:
    model = oracle.tiny_model("llama", 3, tmp_path / "base")
    server = serve("--tensor-parallel-size", str(RANKS), "--max-batch-tokens", "64", model=model)
    wanted = _answers_of_peft(oracle, model, tmp_path, server)
    async with oracle.Client.connect(server.url) as client:
        bodies = [_body(name, MAX_TOKENS) for name in wanted]
        answers = await asyncio.gather(*map(client.complete, bodies))
        assert {name: answer.token_ids for name, answer in zip(wanted, answers, strict=True)} == wanted
        await _kill_a_rank(oracle, server, client)
        server.wait_until(server._is_ready, "have another engine")
        assert (await client.complete(_body("ia3", MAX_TOKENS))).token_ids == wanted["ia3"]
    assert len(_other_ranks(oracle, server)) == RANKS - 1


def test_what_cannot_be_divided_is_refused(oracle: ModuleType, serve: Callable[..., Any], tmp_path: Path) -> None:
    """A base with one line that says why; an adapter with a 400."""
    with pytest.raises(AssertionError, match="the server has exited") as exited:
        serve("--tensor-parallel-size", "2", model=oracle.tiny_model("gpt2", 1, tmp_path / "gpt2"))
    assert "transformers has no plan of tensor parallel for GPT2LMHeadModel" in str(exited.value)


def _answers_of_peft(oracle: ModuleType, model: Path, folder: Path, server: Any) -> dict[str, list[int]]:
    """Upload an adapter of each method. Returns the tokens that PEFT gives with each, and those of the base."""
    plain = oracle.plain_model(model)
    wanted = {"base": oracle.peft_generate(plain, PROMPT, MAX_TOKENS).token_ids}
    for name in METHODS:
        entry = oracle.CATALOG[name]
        config = entry.make(oracle.kind_of(plain.config.model_type))
        adapter = oracle.method_adapter(model, folder / name, config, randomize=entry.randomize)
        response = server.upload(name, adapter)
        assert response.status_code == 201, response.text
        wanted[name] = oracle.peft_generate(oracle.peft_model(model, adapter, "cpu"), PROMPT, MAX_TOKENS).token_ids
    response = server.upload("turned", _rotating(oracle, model, folder / "turned"))
    assert response.status_code == 400
    assert (
        "under --tensor-parallel-size its rotations turn blocks of 32 features" in response.json()["error"]["message"]
    )
    return wanted


def _rotating(oracle: ModuleType, model: Path, folder: Path) -> Path:
    """Make an adapter that turns blocks of 32 features, of which a rank has a part of 96 / 2."""
    import peft

    config = peft.OFTConfig(task_type="CAUSAL_LM", target_modules=["down_proj"], oft_block_size=32)
    adapter: Path = oracle.method_adapter(model, folder, config)
    return adapter


def _body(name: str, max_tokens: int) -> dict[str, Any]:
    sampling = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    return {"model": name, "prompt": PROMPT, **sampling}


async def _kill_a_rank(oracle: ModuleType, server: Any, client: Any) -> None:
    """Kill a rank under a request, and check that it ends at once, with an error, and that the log says which rank."""
    (rank,) = _other_ranks(oracle, server)
    begun = asyncio.Event()
    answer = asyncio.create_task(client.stream(_body("base", 200), begun))
    await begun.wait()
    os.kill(rank, signal.SIGKILL)
    with pytest.raises(AssertionError, match="engine"):
        await asyncio.wait_for(answer, SOON)
    said = f"rank 1 of {RANKS} (process {rank}) was killed by SIGKILL"
    server.wait_until(lambda: said in server.log.read_text(), f"say that {said}")


def _other_ranks(oracle: ModuleType, server: Any) -> list[int]:
    return [*oracle.children_of(server.engine_pid())]
