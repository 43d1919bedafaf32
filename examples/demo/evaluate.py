"""Ask the demo, greedily, through transformers and PEFT, and count the right answers to prompts never trained on."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tasks import TASKS, Example
from transformers import PreTrainedTokenizerFast

EVALUATION_SEED = 1_000_003


def held_out(num_prompts: int) -> dict[str, list[Example]]:
    """Return distinct held-out examples of each task."""
    return {task.name: _distinct(task.examples(EVALUATION_SEED, held_out=True), num_prompts) for task in TASKS}


def _distinct(examples: Iterable[Example], count: int) -> list[Example]:
    seen: dict[str, Example] = {}
    for example in examples:
        seen.setdefault(example.prompt, example)
        if len(seen) == count:
            break
    return list(seen.values())


def write_held_out(file: Path, num_prompts: int) -> None:
    lines = [
        json.dumps({"adapter": name, "prompt": example.prompt, "answer": example.answer})
        for name, examples in held_out(num_prompts).items()
        for example in examples
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.inference_mode()
def count_right(model: Any, tokenizer: PreTrainedTokenizerFast, examples: list[Example], batch: int = 40) -> int:
    """Count the answers that are exactly right."""
    remaining, right = iter(examples), 0
    while group := list(islice(remaining, batch)):
        answers = _answer(model, tokenizer, [example.prompt for example in group])
        right += sum(answer == example.answer for answer, example in zip(answers, group, strict=True))
    return right


def _answer(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=80,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers: list[str] = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers
