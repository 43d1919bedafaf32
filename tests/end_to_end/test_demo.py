"""The demo's adapters do their tasks through the server, in one mixed batch, and its route finds them by the prompt.

The bare base does none of the tasks.
"""

import asyncio
import json
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peftserve.server.demo import DEMO_ADAPTERS, DEMO_HELD_OUT, DEMO_MODEL, DEMO_NAME, DEMO_ROUTES

pytestmark = pytest.mark.slow

RIGHT = 0.95
BASE_PROMPTS = 4  # of each task: the base, which does none, goes on to the last token
OTHER_PROMPTS = 20  # of each adapter that does a task by another method than LoRA
CLIENTS = 64
AUTO = "auto"  # the route; it is asked for the tasks that can be told apart
STATES = "states"  # the same with the base's hidden states
OTHER_TEXT = "How are you today, and how is all of your family? What did you do when it rained?"
TOLD_APART = ("sql", "json", "dates", "numbers")


async def test_each_adapter_is_right_and_the_base_is_not(oracle: ModuleType, device: str, tmp_path: Path) -> None:
    questions = questions_of_the_demo()
    flags = [flag for name, folder in DEMO_ADAPTERS.items() for flag in ("--adapter", f"{name}={folder}")]
    for route, file in ((AUTO, DEMO_ROUTES[AUTO]), (STATES, by_states(tmp_path / "states.json"))):
        flags += ["--route", f"{route}={file}"]
    flags += ["--served-model-name", DEMO_NAME, "--device", device]
    server = oracle.RunningServer.start(DEMO_MODEL, tmp_path / "state", tmp_path / "server.log", *flags)
    try:
        async with oracle.Client.connect(server.url) as client:
            free = asyncio.Semaphore(CLIENTS)
            answers = await asyncio.gather(*(ask(client, free, model, prompt) for model, prompt, _ in questions))
            other = await client.official.chat.completions.create(
                model=STATES, messages=[{"role": "user", "content": OTHER_TEXT}], max_completion_tokens=1
            )
    finally:
        server.stop()
    right: Counter[str] = Counter()
    asked: defaultdict[str, int] = defaultdict(int)
    for (model, _, wanted), got in zip(questions, answers, strict=True):
        asked[model] += 1
        right[model] += got == wanted
    assert right[DEMO_NAME] == 0
    for route in (AUTO, STATES):
        assert right[route] >= RIGHT * asked[route]
        assert asked[route] >= 40
    assert other.model == DEMO_NAME
    assert other.usage.prompt_tokens_details.cached_tokens >= 16  # the prompt was run once, to choose and to answer
    assert {name: right[name] for name in DEMO_ADAPTERS if right[name] < RIGHT * asked[name]} == {}


def by_states(file: Path) -> Path:
    """Write the demo's route with the other encoder, at a threshold of its own."""
    body = json.loads(DEMO_ROUTES[AUTO].read_text(encoding="utf-8"))
    file.write_text(json.dumps({**body, "encoder": "base", "threshold": 0.7}), encoding="utf-8")
    return file


def questions_of_the_demo() -> list[tuple[str, str, str]]:
    """Return (model, prompt, right answer), the models taking turns. Some of the prompts go to the base too."""
    lines = [json.loads(line) for line in DEMO_HELD_OUT.read_text(encoding="utf-8").splitlines()[::2]]
    by_adapter = {name: [line for line in lines if line["adapter"] == name] for name in DEMO_ADAPTERS}
    for name in [name for name in DEMO_ADAPTERS if not by_adapter[name]]:  # another method for a task
        by_adapter[name] = by_adapter[name.partition("-")[0]][:OTHER_PROMPTS]
    ranked = [(i, name, line) for name, of_name in by_adapter.items() for i, line in enumerate(of_name)]
    questions = [(i, name, line["prompt"], line["answer"]) for i, name, line in ranked]
    told_apart = [(i, line) for i, name, line in ranked if name in TOLD_APART and i < 12]
    questions += [(i, route, line["prompt"], line["answer"]) for i, line in told_apart for route in (AUTO, STATES)]
    few = {line["prompt"]: (i, line["answer"]) for i, _, line in ranked if i < BASE_PROMPTS}
    questions += [(i, DEMO_NAME, prompt, answer) for prompt, (i, answer) in few.items()]
    return [question for _, *question in sorted(questions)]  # type: ignore[misc]


async def ask(client: Any, free: asyncio.Semaphore, model: str, prompt: str) -> str:
    async with free:
        chat = await client.official.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_completion_tokens=128
        )
    chosen = {chat.model.partition("@")[0]}
    assert chosen <= ({*TOLD_APART, DEMO_NAME} if model in (AUTO, STATES) else {model})
    return str(chat.choices[0].message.content)
