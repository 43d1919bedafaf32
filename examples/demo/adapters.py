"""Train one adapter of the demo with PEFT, and write it as PEFT writes it.

One LoRA adapter a task, and then a few tasks once more by other methods: `title-oft` is the task `title` by OFT.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from base import Row, bucketed, chat_row, train
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    get_peft_model,
)
from tasks import TASKS, Task
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


TASK = {task.name: task for task in TASKS}


@dataclass(frozen=True)
class Recipe:
    """The training of one adapter. task: its name. config: makes PEFT's configuration.

    autocast: matrix products in bfloat16, for methods that bear it.
    """

    task: str
    config: Callable[[], PeftConfig]
    steps: int
    rate: float = 4e-3
    autocast: bool = True


def _lora(task: str, steps: int, **options: Any) -> Recipe:
    return Recipe(task, lambda: LoraConfig(task_type="CAUSAL_LM", **options), steps)


def _other(task: str, config: type[PeftConfig], steps: int, rate: float, **options: Any) -> Recipe:
    return Recipe(task, lambda: config(task_type="CAUSAL_LM", **options), steps, rate, autocast=False)


RECIPES = {
    "sql": _lora("sql", 350, r=16, lora_alpha=32, target_modules="all-linear"),
    "json": _lora("json", 250, r=8, lora_alpha=16, target_modules=ATTENTION),
    "dates": _lora("dates", 500, r=16, lora_alpha=16, use_rslora=True, target_modules="all-linear"),
    "numbers": _lora("numbers", 700, r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", *MLP]),
    "snake": _lora("snake", 200, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "reverse": _lora("reverse", 250, r=16, lora_alpha=32, target_modules=ATTENTION),
    "title": _lora("title", 250, r=32, lora_alpha=32, target_modules="all-linear", rank_pattern={"down_proj": 8}),
    "snake-dora": _other(
        "snake", LoraConfig, 250, 4e-3, r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "v_proj"]
    ),
    "title-loha": _other("title", LoHaConfig, 400, 1e-2, r=4, alpha=8, target_modules=[*ATTENTION, *MLP]),
    "snake-ia3": _other(
        "snake",
        IA3Config,
        600,
        3e-2,
        target_modules=[*ATTENTION, *MLP],
        feedforward_modules=["down_proj"],
    ),
    "snake-oft": _other("snake", OFTConfig, 300, 4e-3, oft_block_size=16, target_modules=ATTENTION),
    "snake-prefix": _other("snake", PrefixTuningConfig, 600, 3e-2, num_virtual_tokens=16),
    "snake-ptuning": _other("snake", PromptEncoderConfig, 600, 5e-3, num_virtual_tokens=16, encoder_hidden_size=128),
}


def train_adapter(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str, recipe: Recipe, seed: int
) -> PeftModel:
    """Train the adapter of a recipe. The base's weights are left as they are; the caller unloads the adapter again."""
    torch.manual_seed(seed)
    model = get_peft_model(base, recipe.config())
    batches = bucketed(_rows(tokenizer, TASK[recipe.task], seed), 32)
    pad = tokenizer.pad_token_id
    train(model, batches, pad_id=pad, steps=recipe.steps, rate=recipe.rate, label=name, autocast=recipe.autocast)
    return model


def _rows(tokenizer: PreTrainedTokenizerFast, task: Task, seed: int) -> Iterator[Row]:
    for prompt, answer in task.examples(seed, held_out=False):
        yield chat_row(tokenizer, [(prompt, answer)])


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write an adapter in half precision, without a path of this machine: its configuration calls the base `demo`."""
    model.to(torch.float16)
    config = model.peft_config["default"]
    config.base_model_name_or_path = "demo"
    for name in ("target_modules", "feedforward_modules"):  # PEFT makes sets of them, whose order changes with each run
        if isinstance(getattr(config, name, None), set):
            setattr(config, name, sorted(getattr(config, name)))
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
