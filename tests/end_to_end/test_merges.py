"""Merges on real servers: their tokens are those of PEFT's own merge, and a kill leaves nothing half there."""

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

PATIENCE = 180.0
PROMPT = [20, 30, 40]
OPTIONS = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
GROWTH = 12 << 20
"""Bytes by which the server may grow from one merge to several; torch alone would be twenty times that."""


def _merge(
    server: Any, name: str, adapters: dict[str, float], wait: float = PATIENCE, **options: Any
) -> httpx.Response:
    body = {"name": name, "adapters": [{"name": n, "weight": w} for n, w in adapters.items()], **options}
    response: httpx.Response = server.client.post("/v1/adapters/merge", params={"wait": wait}, json=body)
    return response


def _by_peft(base: Path, folder: Path, adapters: dict[Path, float], **options: Any) -> Path:
    """Let PEFT merge adapters and save the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, next(iter(adapters)), adapter_name=next(iter(adapters)).name)
        for path in list(adapters)[1:]:
            model.load_adapter(path, path.name)
        model.add_weighted_adapter([path.name for path in adapters], [*adapters.values()], "merged", **options)
        model.save_pretrained(folder, selected_adapters=["merged"])
    return folder / "merged"


async def test_a_merge_answers_as_peft_merged(world: Any, serve: Callable[..., Any], tmp_path: Path) -> None:
    """With two API processes, either of which may be asked. The server's memory stays what it was."""
    by_name = {path.name: path for path in world.adapters}
    own = {
        name: world.oracle.random_adapter(world.model, tmp_path / name, seed, r=8, lora_alpha=6, target_modules=targets)
        for name, seed, targets in (("x", 1, ["q_proj", "down_proj"]), ("y", 2, ["q_proj", "v_proj"]))
    }
    server = serve("--api-workers", "2")
    by_name |= own
    for name in ("suffixes", "patterns", "embedding_and_head", *own):
        assert server.upload(name, by_name[name]).status_code == 201
    cases: list[tuple[str, dict[str, float], dict[str, Any]]] = [
        ("cat", {"suffixes": 0.6, "patterns": -0.3, "embedding_and_head": 0.5}, {}),
        ("svd", {"suffixes": 0.6, "patterns": 0.5}, {"svd_rank": 24}),
        ("ties", {"x": 1.0, "y": 1.0}, {"density": 0.6}),
    ]
    rss = 0
    async with world.connect(server) as client:
        for kind, adapters, options in cases:
            made = _merge(server, kind, adapters, combination_type=kind, **options)
            assert made.status_code == 201, made.text
            rss = rss or _rss(server)
            paths = {by_name[name]: weight for name, weight in adapters.items()}
            theirs = _by_peft(world.model, tmp_path / f"peft-{kind}", paths, combination_type=kind, **options)
            sure = world.reference.sure(PROMPT, 12, ((theirs, 1.0),))
            answer = await client.complete({"model": kind, **OPTIONS})
            assert answer.token_ids[: len(sure)] == sure, kind
    assert _rss(server) - rss < GROWTH
    assert server.client.get("/v1/jobs").json()["data"][0]["status"] == "succeeded"


def test_a_kill_leaves_nothing_half_there(world: Any, serve: Callable[..., Any]) -> None:
    """When the merge's file begins, and when the version is about to be there."""
    server = serve()
    for path in world.adapters[:2]:
        assert server.upload(path.name, path).status_code == 201
    adapters = {path.name: 0.5 for path in world.adapters[:2]}
    kept = {card["digest"] for card in server.client.get("/v1/adapters").json()["data"]}
    moments: list[Callable[[Path], bool]] = [
        lambda state: any((state / "staging").glob("*/adapter_model.safetensors")),
        lambda state: any((state / "staging").glob("*/adapter_config.json")),
    ]
    for number, moment in enumerate(moments):
        _merge_until(server, f"m{number}", adapters, moment)
        children = _merging(world.oracle, server)
        server.kill()
        server.wait_until(lambda children=children: not any(map(_runs, children)), "take them with it")
        server = serve()
        assert list((server.state / "staging").iterdir()) == []
        cards = server.client.get("/v1/adapters").json()["data"]
        assert {folder.name for folder in (server.state / "adapters").iterdir()} == {card["digest"] for card in cards}
        assert kept <= {card["digest"] for card in cards}
        assert server.client.get("/v1/jobs").json()["data"] == []
    made = _merge(server, "whole", adapters, combination_type="cat")
    assert made.status_code == 201, made.text
    assert server.client.post("/v1/completions", json={"model": "whole", **OPTIONS}).status_code == 200


def _merge_until(server: Any, name: str, adapters: dict[str, float], moment: Callable[[Path], bool]) -> None:
    """Merge until it is the moment, and once more where that went by unseen: the merge has ended by then."""
    for attempt in range(100):
        merged = f"{name}-{attempt}"
        assert _merge(server, merged, adapters, wait=0, combination_type="cat").status_code == 202
        record = server.state / "versions" / f"{merged}@1.json"
        while not record.exists():
            if moment(server.state):
                return
            time.sleep(0.0005)
    raise AssertionError("the moment was never seen")


def _merging(oracle: ModuleType, server: Any) -> list[int]:
    """Return the ids of the server's children that merge."""
    children = oracle.children_of(server.process.pid)
    return [pid for pid, command in children.items() if b"adapters.merging" in command]


def _runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended may wait for whoever inherits it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _rss(server: Any) -> int:
    """Return the bytes of memory of the primary process."""
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")
