"""The demo's files as they ship. That its answers are right is tested through the server."""

import importlib.util
import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open

from peftserve.adapters.peft.methods import METHODS
from peftserve.adapters.routing.bodies import Match, parse_body
from peftserve.adapters.routing.found import Found
from peftserve.adapters.routing.policies import KINDS, Policy, targets_of
from peftserve.adapters.routing.query import Query
from peftserve.adapters.routing.stored import Route
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_HELD_OUT, DEMO_MODEL, DEMO_NAME, DEMO_ROUTES

MOST_BYTES = 15 << 20
TOLD_APART = {"sql", "json", "dates", "numbers"}  # tasks whose prompts say which they are
HELD_OUT = [json.loads(line) for line in DEMO_HELD_OUT.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tasks() -> ModuleType:
    """The trainer's tasks, which need no torch."""
    file = Path(__file__).parents[3] / "examples" / "demo" / "tasks.py"
    spec = importlib.util.spec_from_file_location("demo_tasks", file)
    assert spec
    assert spec.loader
    module = sys.modules["demo_tasks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(adapter: Path) -> dict[str, object]:
    return json.loads((adapter / "adapter_config.json").read_text())


def task_of(name: str) -> str:
    """`snake-ia3` does the task of `snake`, by another method."""
    return name.partition("-")[0]


def test_names() -> None:
    assert DEMO_NAME == "demo"
    assert DEMO_NAME not in DEMO_ADAPTERS
    assert len(DEMO_ADAPTERS) >= 5


def test_all_weights_together_are_small() -> None:
    assert sum(file.stat().st_size for file in DEMO_MODEL.parent.rglob("*.safetensors")) < MOST_BYTES


def test_the_base_is_a_small_llama_with_a_chat_template() -> None:
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    with safe_open(DEMO_MODEL / "model.safetensors", "np") as weights:
        sizes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
    assert 2e6 < sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in sizes) < 3.5e6
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (DEMO_MODEL / name).is_file()


@pytest.mark.parametrize("name", DEMO_ADAPTERS)
def test_an_adapter_is_as_peft_writes_it_and_names_no_place(name: str) -> None:
    config = config_of(DEMO_ADAPTERS[name])
    assert config["peft_type"] in METHODS
    assert config["base_model_name_or_path"] == DEMO_NAME
    assert sorted(file.name for file in DEMO_ADAPTERS[name].iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_adapters_are_of_different_kinds() -> None:
    configs = [config_of(folder) for folder in DEMO_ADAPTERS.values()]
    methods = {(config["peft_type"], bool(config.get("use_dora"))) for config in configs}
    assert len(methods) >= 7
    plain = [config for config in configs if config["peft_type"] == "LORA"]
    assert len({config["r"] for config in plain}) >= 3
    assert len({tuple(sorted(config["target_modules"])) for config in plain}) >= 3
    assert any(config["use_rslora"] for config in plain)


@pytest.mark.parametrize("name", DEMO_ADAPTERS)
def test_held_out_prompts_are_not_their_own_answers(name: str) -> None:
    """The base repeats its prompt, so it can be right on none of them."""
    examples = [example for example in HELD_OUT if example["adapter"] == task_of(name)]
    assert len({example["prompt"] for example in examples}) == len(examples) >= 40
    assert all(example["prompt"] != example["answer"] for example in examples)


def test_every_held_out_prompt_has_its_adapter() -> None:
    assert {example["adapter"] for example in HELD_OUT} == {task_of(name) for name in DEMO_ADAPTERS}


def test_held_out_prompts_were_never_trained_on(tasks: ModuleType) -> None:
    """By the trainer's own rule, which keeps a prompt in one part whatever the seed."""
    assert all(tasks.is_held_out(example["prompt"]) for example in HELD_OUT)
    for task in tasks.TASKS:
        trained = {example.prompt for example in islice(task.examples(0, held_out=False), 300)}
        assert not trained & {example["prompt"] for example in HELD_OUT}


def policy_of(name: str) -> Policy:
    route = Route(name, 1, 0.0, DEMO_ROUTES[name].read_text(encoding="utf-8"))
    return KINDS[type(route.body())].make(route.body(), route)


def chosen_by(policy: Policy, prompt: str) -> str:
    """Return the target that a route of the demo chooses; empty for the bare base."""
    return policy(Query(text=lambda: prompt), lambda target: Found(), lambda found: True).chosen


@pytest.mark.parametrize("name", DEMO_ROUTES)
def test_a_route_names_adapters_of_the_demo_and_is_no_name_of_theirs(name: str) -> None:
    assert name not in {DEMO_NAME, *DEMO_ADAPTERS}
    assert {*targets_of(parse_body(DEMO_ROUTES[name].read_text()))} <= {*DEMO_ADAPTERS}


def test_the_route_auto_knows_the_tasks_that_can_be_told_apart() -> None:
    """Of prompts that are not among its examples; what no prompt can tell, and other texts, is the base's."""
    policy = policy_of("auto")
    right, asked = Counter[str](), Counter[str]()
    for example in HELD_OUT:
        wanted = example["adapter"] if example["adapter"] in TOLD_APART else ""
        asked[wanted] += 1
        right[wanted] += chosen_by(policy, example["prompt"]) == wanted
    assert {task: right[task] / asked[task] for task in asked if right[task] < 0.95 * asked[task]} == {}
    assert {*asked} == {*TOLD_APART, ""}
    assert [chosen_by(policy, text) for text in ("Hello!", "Tell me a joke about a cat.", "zzz", "")] == [""] * 4


def test_the_examples_of_the_route_auto_are_no_held_out_prompts(tasks: ModuleType) -> None:
    body = parse_body(DEMO_ROUTES["auto"].read_text())
    assert isinstance(body, Match)
    examples = {text for candidate in body.candidates for text in candidate.examples}
    assert not examples & {example["prompt"] for example in HELD_OUT}
    assert not [text for text in examples if tasks.is_held_out(text)]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (15, "fifteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (107, "one hundred seven"),
        (4000, "four thousand"),
    ],
)
def test_numbers_are_spelled(tasks: ModuleType, number: int, words: str) -> None:
    assert tasks.spell(number) == words
