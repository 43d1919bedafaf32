"""Trains one LoRA adapter of the demo with PEFT, and writes it as PEFT writes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from base import Row, bucketed, chat_row, train
from peft import LoraConfig, PeftModel, get_peft_model
from tasks import Task
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """How one task's adapter is trained. lora: arguments of `LoraConfig`."""

    lora: dict[str, Any]
    steps: int
    rate: float = 4e-3


RECIPES = {
    "sql": Recipe({"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}, steps=350),
    "json": Recipe({"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}, steps=250),
    "dates": Recipe({"r": 16, "lora_alpha": 16, "use_rslora": True, "target_modules": "all-linear"}, steps=500),
    "numbers": Recipe({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", *MLP]}, steps=700),
    "snake": Recipe({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}, steps=200),
    "reverse": Recipe({"r": 16, "lora_alpha": 32, "target_modules": ATTENTION}, steps=250),
    "title": Recipe(
        {"r": 32, "lora_alpha": 32, "target_modules": "all-linear", "rank_pattern": {"down_proj": 8}}, steps=250
    ),
}


def train_adapter(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, recipe: Recipe, seed: int
) -> PeftModel:
    """The base's weights are left as they are; the caller unloads the adapter again."""
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **recipe.lora))
    batches = bucketed(_rows(tokenizer, task, seed), 32)
    train(model, batches, pad_id=tokenizer.pad_token_id, steps=recipe.steps, rate=recipe.rate, label=task.name)
    return model


def _rows(tokenizer: PreTrainedTokenizerFast, task: Task, seed: int) -> Iterator[Row]:
    for prompt, answer in task.examples(seed, held_out=False):
        yield chat_row(tokenizer, [(prompt, answer)])


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Half precision and no path of this machine: the configuration names the base as `demo`."""
    model.to(torch.float16)
    config = model.peft_config["default"]
    config.base_model_name_or_path = "demo"
    config.target_modules = sorted(config.target_modules)  # PEFT makes a set of it, whose order changes with each run
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
